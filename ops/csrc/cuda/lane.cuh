// The arithmetic of one lane: V neighbouring channels of one row. Functions of the lane alone, so
// that a plain C++ compiler can run them, too (tests/ops/cuda_lanes_on_host.cpp).
//
// Letters: B pictures, S pixels of all levels together, Q queries, M heads, D channels of a head,
// L levels, P points. A row is one (picture, query, head); it has L * P samples. T is the type of
// the values in memory; A is the type computed in: double for double, else float.
#pragma once

#include <cmath>
#include <cstdint>

#include "../sizes.h"

namespace msda {

constexpr int kMaxLevels = 64;

struct Levels {
  int height[kMaxLevels], width[kMaxLevels];
  int64_t first[kMaxLevels];  // index of the level's first pixel
};

// V values that are loaded and stored at once.
template <typename T, int V>
struct alignas(sizeof(T) * V) Vector {
  T at[V];
};

// Where a sample lies: four pixels, what each counts for, and how that changes with x and y.
// A pixel outside of the level counts for nothing and is not read.
template <typename A>
struct Place {
  int64_t pixel[4];
  A weight[4], slope_x[4], slope_y[4];  // slopes per pixel
  bool inside[4];
};

// What the kernels read of a sample.
template <typename A>
struct Sample {
  A x, y, attention;
};

// Where a lane reads the samples of its row: locations (B, Q, M, L, P, 2) and attention weights
// (B, Q, M, L, P) ...
template <typename A>
struct GivenSamples {
  const A* locations;
  const A* attention;

  struct Row {
    const A *locations, *attention;
    MSDA_HD Sample<A> operator()(int64_t sample) const {
      return {locations[2 * sample], locations[2 * sample + 1], attention[sample]};
    }
  };
  MSDA_HD Row row(const Sizes&, int64_t) const { return {locations, attention}; }
};

// ... or offsets from reference points (Q, 2), and logits whose softmax over the row is taken here:
// every lane of the row does so for itself, in registers.
template <typename A>
struct ProjectedSamples {
  const A* offsets;
  const A* logits;
  const A* reference;

  struct Row {
    const A *offsets, *logits;
    A x, y, largest, factor;
    MSDA_HD Sample<A> operator()(int64_t sample) const {
      return {x + offsets[2 * sample], y + offsets[2 * sample + 1],
              std::exp(logits[sample] - largest) * factor};
    }
  };
  MSDA_HD Row row(const Sizes& sizes, int64_t row) const {
    const int64_t n = sizes.samples(), first = row * n, query = row / sizes.M % sizes.Q;
    A largest = logits[first], sum = 0;
    for (int64_t s = first + 1; s < first + n; ++s) {
      largest = logits[s] > largest ? logits[s] : largest;
    }
    for (int64_t s = first; s < first + n; ++s) sum += std::exp(logits[s] - largest);
    return {offsets, logits, reference[2 * query], reference[2 * query + 1], largest, A(1) / sum};
  }
};

// (x, y) in [0, 1] of the level; false if no pixel is near, or a coordinate is not finite.
template <typename A>
MSDA_HD bool locate(A x, A y, int height, int width, Place<A>& place) {
  x = x * static_cast<A>(width) - A(0.5);
  y = y * static_cast<A>(height) - A(0.5);
  if (!(x > A(-1) && y > A(-1) && x < static_cast<A>(width) && y < static_cast<A>(height))) {
    return false;
  }
  const A left = std::floor(x), top = std::floor(y);
  const A right_part = x - left, bottom_part = y - top;
  const int column = static_cast<int>(left), line = static_cast<int>(top);
#ifdef __CUDACC__
#pragma unroll
#endif
  for (int corner = 0; corner < 4; ++corner) {
    const int right = corner & 1, bottom = corner >> 1;
    const A across = right ? right_part : A(1) - right_part;
    const A down = bottom ? bottom_part : A(1) - bottom_part;
    const int i = column + right, j = line + bottom;
    place.inside[corner] = i >= 0 && i < width && j >= 0 && j < height;
    place.pixel[corner] = static_cast<int64_t>(j) * width + i;
    place.weight[corner] = across * down;
    place.slope_x[corner] = right ? down : -down;
    place.slope_y[corner] = bottom ? across : -across;
  }
  return true;
}

// Adds one sample to the V sums of a lane. `value` is the lane's channels of the level's first pixel,
// `stride` the distance of two pixels.
template <typename T, typename A, int V>
MSDA_HD void forward_sample(const Place<A>& place, A attention, const T* value, int64_t stride,
                            A (&sum)[V]) {
#ifdef __CUDACC__
#pragma unroll
#endif
  for (int corner = 0; corner < 4; ++corner) {
    if (!place.inside[corner]) continue;
    const auto pixel =
        *reinterpret_cast<const Vector<T, V>*>(value + place.pixel[corner] * stride);
    const A weight = attention * place.weight[corner];
    for (int c = 0; c < V; ++c) sum[c] += weight * static_cast<A>(pixel.at[c]);
  }
}

// A lane's part of the gradients of one sample's attention weight and location, in pixels.
template <typename A>
struct SampleGradient {
  A attention = 0, x = 0, y = 0;
};

// Its gradients of the values go to add(corner's pixel, channel of the lane, gradient).
template <typename T, typename A, int V, typename Add>
MSDA_HD SampleGradient<A> backward_sample(const Place<A>& place, A attention, const T* value,
                                          int64_t stride, const A (&grad)[V], const Add& add) {
  SampleGradient<A> result;
#ifdef __CUDACC__
#pragma unroll
#endif
  for (int corner = 0; corner < 4; ++corner) {
    if (!place.inside[corner]) continue;
    const auto pixel =
        *reinterpret_cast<const Vector<T, V>*>(value + place.pixel[corner] * stride);
    A product = 0;
    Vector<A, V> to_value;
    for (int c = 0; c < V; ++c) {
      product += grad[c] * static_cast<A>(pixel.at[c]);
      to_value.at[c] = attention * place.weight[corner] * grad[c];
    }
    add(place.pixel[corner], to_value);
    result.attention += place.weight[corner] * product;
    result.x += attention * place.slope_x[corner] * product;
    result.y += attention * place.slope_y[corner] * product;
  }
  return result;
}

}  // namespace msda
