// The arithmetic of one sample. Functions of numbers alone, so that a plain C++ compiler can run them,
// too (tests/ops/cuda_samples_on_host.cpp).
//
// Letters: B pictures, S pixels of all levels together, Q queries, M heads, D channels of a head,
// L levels, P points. A row is one (picture, query, head); it has L * P samples. T is the type of
// the values in memory; A is the type computed in: double for double, else float.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "../sizes.h"

#ifdef __CUDACC__
#define MSDA_UNROLL _Pragma("unroll")
#else
#define MSDA_UNROLL
#endif

namespace msda {

// V values that are loaded and stored at once.
template <typename T, int V>
struct alignas(sizeof(T) * V) Vector {
  T at[V];
};

struct Level {
  int height, width;
  uint32_t first;  // index of its first pixel in the picture
};

// Where a sample lies: in columns x[0] and x[1] = 1 - x[0] of it, in lines y[0] and y[1] likewise.
// What is outside of the level has the part 0, is not `inside`, and stands for a neighbour that is;
// where all is outside, or a coordinate is not finite, the pixels are the level's first.
template <typename A>
struct Place {
  A x[2], y[2];
  A inside_x[2], inside_y[2];  // 1 or 0
  Vector<uint32_t, 4> pixel;   // of line j and column k at 2 * j + k; index in the picture
  bool near;                   // else all is outside, and what follows means nothing
  uint32_t cell;               // of the level: the square between its four pixels, see Cell
  A right, lower;              // the parts of x[1] and y[1], were they inside
};

// (x, y) in pixels; the centre of the level's first is (0.5, 0.5).
template <typename A>
MSDA_HD Place<A> locate(A x, A y, const Level& level) {
  const A width = static_cast<A>(level.width), height = static_cast<A>(level.height);
  x -= A(0.5);
  y -= A(0.5);
  const bool near = x > A(-1) && y > A(-1) && x < width && y < height;  // false for NaN
  x = near ? x : A(0);
  y = near ? y : A(0);
  const A left = std::floor(x), top = std::floor(y);
  const int column = static_cast<int>(left), line = static_cast<int>(top);
  const bool left_in = near && column >= 0, right_in = near && column + 1 < level.width;
  const bool top_in = near && line >= 0, bottom_in = near && line + 1 < level.height;
  Place<A> place;
  place.near = near;
  place.cell = static_cast<uint32_t>(line + 1) * (level.width + 1u) + (column + 1);
  place.right = x - left;
  place.lower = y - top;
  place.x[0] = left_in ? A(1) - (x - left) : A(0);
  place.x[1] = right_in ? x - left : A(0);
  place.y[0] = top_in ? A(1) - (y - top) : A(0);
  place.y[1] = bottom_in ? y - top : A(0);
  place.inside_x[0] = left_in ? A(1) : A(0);
  place.inside_x[1] = right_in ? A(1) : A(0);
  place.inside_y[0] = top_in ? A(1) : A(0);
  place.inside_y[1] = bottom_in ? A(1) : A(0);
  const uint32_t columns[2] = {static_cast<uint32_t>(left_in ? column : column + near),
                               static_cast<uint32_t>(right_in ? column + 1 : column)};
  const uint32_t lines[2] = {static_cast<uint32_t>(top_in ? line : line + near),
                             static_cast<uint32_t>(bottom_in ? line + 1 : line)};
  for (int corner = 0; corner < 4; ++corner) {
    place.pixel.at[corner] =
        level.first + lines[corner >> 1] * static_cast<uint32_t>(level.width) + columns[corner & 1];
  }
  return place;
}

// What all lanes of a row need of a sample: its pixels, and what each counts for.
template <typename A>
struct Corners {
  Vector<uint32_t, 4> pixel;
  Vector<A, 4> weight;
};

template <typename A>
MSDA_HD Corners<A> weigh(const Place<A>& place, A attention) {
  Corners<A> corners{place.pixel, {}};
  for (int corner = 0; corner < 4; ++corner) {
    corners.weight.at[corner] = attention * place.y[corner >> 1] * place.x[corner & 1];
  }
  return corners;
}

template <typename T, typename A, int V>
MSDA_HD void convert(const Vector<T, V>& from, A (&to)[V]) {
  MSDA_UNROLL for (int c = 0; c < V; ++c) to[c] = static_cast<A>(from.at[c]);
}

// A lane's channels of a picture's pixels, in pieces that are loaded at once.
template <typename T, int Pieces = 1>
struct Pixels {
  const char* first[Pieces];  // in the picture's first pixel
  uint32_t stride;            // bytes from a pixel to the next

  template <int V>
  MSDA_HD Vector<T, V> load(uint32_t pixel) const {
    Vector<T, V> loaded;
    MSDA_UNROLL for (int i = 0; i < Pieces; ++i) {
      const auto* from = reinterpret_cast<const Vector<T, V / Pieces>*>(
          first[i] + static_cast<uint64_t>(pixel) * stride);
      reinterpret_cast<Vector<T, V / Pieces>*>(&loaded)[i] = load_once(from);
    }
    return loaded;
  }

 private:
  template <int N>
  MSDA_HD static Vector<T, N> load_once(const Vector<T, N>* from) {
#ifdef __CUDA_ARCH__
    constexpr size_t kBytes = sizeof(Vector<T, N>);
    if constexpr (kBytes == sizeof(uint4) || kBytes == sizeof(uint2)) {
      using Raw = std::conditional_t<kBytes == sizeof(uint4), uint4, uint2>;
      const Raw loaded = __ldg(reinterpret_cast<const Raw*>(from));
      return reinterpret_cast<const Vector<T, N>&>(loaded);
    }
#endif
    return *from;
  }
};

// Adds V channels of a sample to their sums.
template <typename T, int Pieces, typename A, int V>
MSDA_HD void forward_sample(const Corners<A>& corners, const Pixels<T, Pieces>& pixels,
                            A (&sum)[V]) {
  Vector<T, V> loaded[4];
  MSDA_UNROLL for (int corner = 0; corner < 4; ++corner) {
    loaded[corner] = pixels.template load<V>(corners.pixel.at[corner]);
  }
  MSDA_UNROLL for (int corner = 0; corner < 4; ++corner) {
    A value[V];
    convert(loaded[corner], value);
    MSDA_UNROLL for (int c = 0; c < V; ++c) sum[c] += corners.weight.at[corner] * value[c];
  }
}

// Adds, to products[corner], that of the V channels' gradients and the corner's values.
template <typename T, int Pieces, typename A, int V>
MSDA_HD void backward_sample(const Vector<uint32_t, 4>& pixel, const Pixels<T, Pieces>& pixels,
                             const A (&grad)[V], A (&products)[4]) {
  Vector<T, V> loaded[4];
  MSDA_UNROLL for (int corner = 0; corner < 4; ++corner) {
    loaded[corner] = pixels.template load<V>(pixel.at[corner]);
  }
  MSDA_UNROLL for (int corner = 0; corner < 4; ++corner) {
    A value[V];
    convert(loaded[corner], value);
    MSDA_UNROLL for (int c = 0; c < V; ++c) products[corner] += grad[c] * value[c];
  }
}

template <typename A>
struct SampleGradient {
  A attention, x, y;
};

// From the products of all channels of the row.
template <typename A>
MSDA_HD SampleGradient<A> gradient(const Place<A>& place, A attention, const A (&products)[4]) {
  A inside[4];
  for (int corner = 0; corner < 4; ++corner) {
    inside[corner] =
        place.inside_y[corner >> 1] * place.inside_x[corner & 1] * products[corner];
  }
  const A top = place.x[0] * inside[0] + place.x[1] * inside[1];
  const A bottom = place.x[0] * inside[2] + place.x[1] * inside[3];
  const A across = place.y[0] * (inside[1] - inside[0]) + place.y[1] * (inside[3] - inside[2]);
  return {place.y[0] * top + place.y[1] * bottom, attention * across, attention * (bottom - top)};
}

// The square between four neighbouring pixels of a level; those at its edges reach beyond it. A level
// has (height + 1) x (width + 1) of them.
struct Cell {
  int line, column;  // of its upper left pixel, -1 if that is outside

  MSDA_HD Cell(uint32_t index, const Level& level)
      : line(static_cast<int>(index / (level.width + 1u)) - 1),
        column(static_cast<int>(index % (level.width + 1u)) - 1) {}
  MSDA_HD static uint32_t count(const Level& level) {
    return (level.height + 1u) * (level.width + 1u);
  }
  MSDA_HD bool inside(int corner, const Level& level) const {
    const int y = line + (corner >> 1), x = column + (corner & 1);
    return y >= 0 && y < level.height && x >= 0 && x < level.width;
  }
  MSDA_HD uint32_t pixel(int corner, const Level& level) const {
    return level.first + (line + (corner >> 1)) * level.width + column + (corner & 1);
  }
};

// What backward needs of a sample for the gradients of its cell's pixels; the samples of a cell are
// chained.
template <typename A>
struct alignas(16) Link {
  A right, lower, attention;  // as in Place
  uint32_t next;

  MSDA_HD A weight(int corner) const {
    return attention * (corner & 1 ? right : A(1) - right) *
           (corner >> 1 ? lower : A(1) - lower);
  }
};

}  // namespace msda
