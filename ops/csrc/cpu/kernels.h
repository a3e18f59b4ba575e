// Forward and backward of a block of rows that belong to one picture and head.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "geometry.h"

namespace msda {

constexpr int kLanes = 16;

// R = block_rows(sizes) rows at most; what a row has of each kind lies together.
template <typename A>
struct alignas(64) Block {
  const LevelTable<A> level;
  const int64_t n, D;
  Geometry<A> g;
  A locations[2 * kCapacity], attention[kCapacity];  // (R, n, 2), (R, n)
  A grad_locations[2 * kCapacity], grad_attention[kCapacity];
  std::vector<A> out;  // (R, D), or its gradient
  // Dot products of the output's gradient with the values at the corners 00, 01, 10, 11 of each
  // sample; and, for the samples of one row, the partial sums that they are made from.
  A dots[kCapacity][4];
  A partial[kCapacity * 4 * kLanes], quarter[kCapacity * 4 * 4];

  Block(const Sizes& sizes, const std::vector<int64_t>& shapes)
      : level(sizes, shapes), n(sizes.samples()), D(sizes.D), out(block_rows(sizes) * sizes.D) {}
};

// In a block whose `locations` are offsets, in pixels, from the rows' reference points (rows, 2) and
// whose `attention` are logits: makes locations of them, and takes the softmax over each row.
template <typename A>
MSDA_INLINE void finish_projection(Block<A>& MSDA_RESTRICT block, const A* MSDA_RESTRICT reference,
                                   int64_t rows) {
  const int64_t n = block.n;
  A* MSDA_RESTRICT locations = block.locations;
  A* MSDA_RESTRICT attention = block.attention;
  for (int64_t row = 0; row < rows; ++row) {
    const A x = reference[2 * row], y = reference[2 * row + 1];
    A largest = attention[row * n];
    for (int64_t s = row * n; s < (row + 1) * n; ++s) {
      locations[2 * s] = x + locations[2 * s] * block.level.across[s];
      locations[2 * s + 1] = y + locations[2 * s + 1] * block.level.down[s];
      largest = attention[s] > largest ? attention[s] : largest;
    }
    for (int64_t s = row * n; s < (row + 1) * n; ++s) attention[s] -= largest;
  }
  for (int64_t s = 0; s < rows * n; ++s) attention[s] = exp_of_negative(attention[s]);
  for (int64_t row = 0; row < rows; ++row) {
    A sum = 0;
    for (int64_t s = row * n; s < (row + 1) * n; ++s) sum += attention[s];
    const A factor = A(1) / sum;
    for (int64_t s = row * n; s < (row + 1) * n; ++s) attention[s] *= factor;
  }
}

// From the gradients of locations and attention weights to those of offsets and logits, of which the
// latter are w * (g - the sum of w * g).
template <typename A>
MSDA_INLINE void finish_gradients(Block<A>& MSDA_RESTRICT block, int64_t rows) {
  const int64_t n = block.n;
  const A* MSDA_RESTRICT attention = block.attention;
  A* MSDA_RESTRICT grad = block.grad_attention;
  A* MSDA_RESTRICT grad_locations = block.grad_locations;
  for (int64_t s = 0; s < rows * n; ++s) {
    grad_locations[2 * s] *= block.level.across[s];
    grad_locations[2 * s + 1] *= block.level.down[s];
  }
  for (int64_t row = 0; row < rows; ++row) {
    A sum = 0;
    for (int64_t s = row * n; s < (row + 1) * n; ++s) sum += attention[s] * grad[s];
    for (int64_t s = row * n; s < (row + 1) * n; ++s) grad[s] = attention[s] * (grad[s] - sum);
  }
}

// C numbers. Of the loop alone GCC makes a call of memmove, which takes longer than to copy so little;
// a memcpy of a known size is none.
template <int C, typename From, typename To>
MSDA_INLINE void copy_chunk(const From* MSDA_RESTRICT from, To* MSDA_RESTRICT to) {
  if constexpr (std::is_same_v<From, To>) {
    std::memcpy(to, from, C * sizeof(To));
  } else {
    for (int k = 0; k < C; ++k) to[k] = static_cast<To>(from[k]);
  }
}

// C channels of the output of a row, whose samples are s0, ..., s0 + n - 1.
// value: the channels at the first pixel.
template <int C, typename A>
MSDA_INLINE void forward_chunk(const A* value, const Geometry<A>& g, int64_t s0, int64_t n,
                               A* out) {
  A sum[C] = {};
  for (int64_t s = s0; s < s0 + n; ++s) {
    if (!g.inside[s]) continue;
    const A* v00 = value + g.p00[s];
    const A* v01 = value + g.p01[s];
    const A* v10 = value + g.p10[s];
    const A* v11 = value + g.p11[s];
    const A w00 = g.w00[s], w01 = g.w01[s], w10 = g.w10[s], w11 = g.w11[s];
    for (int k = 0; k < C; ++k) {
      sum[k] += w00 * v00[k] + w01 * v01[k] + w10 * v10[k] + w11 * v11[k];
    }
  }
  for (int k = 0; k < C; ++k) out[k] = sum[k];
}

// locations, attention and value (S, D) -> out.
template <typename A>
MSDA_INLINE void forward_rows(Block<A>& block, const A* value, int64_t rows) {
  const int64_t n = block.n, D = block.D;
  locate(block.locations, block.attention, block.level, rows * n, static_cast<int32_t>(D), block.g);
  for (int64_t row = 0; row < rows; ++row) {
    A* out = block.out.data() + row * D;
#define MSDA_CHUNK(C) forward_chunk<C>(value + channel, block.g, row * n, n, out + channel)
    MSDA_FOR_CHUNKS(D, MSDA_CHUNK)
#undef MSDA_CHUNK
  }
}

template <int C, typename A>
MSDA_INLINE void add_scaled(A* to, A weight, const A* row) {
  for (int k = 0; k < C; ++k) to[k] += weight * row[k];
}

// Products of two rows of C channels, added up to W partial sums.
template <int C, int W, typename A>
MSDA_INLINE void partial_dot(const A* a, const A* b, A* to) {
  A sum[W] = {};
  for (int k = 0; k < C; k += W) {
    for (int j = 0; j < W; ++j) sum[j] += a[k + j] * b[k + j];
  }
  for (int j = 0; j < W; ++j) to[j] = sum[j];
}

// to[i][j] = from[i][j] + from[i][j + V] + ...: W numbers become V.
template <int W, int V, typename A>
MSDA_INLINE void fold(const A* MSDA_RESTRICT from, int64_t count, A* MSDA_RESTRICT to) {
  for (int64_t i = 0; i < count; ++i) {
    A sum[V] = {};
    for (int k = 0; k < W; k += V) {
      for (int j = 0; j < V; ++j) sum[j] += from[i * W + k + j];
    }
    for (int j = 0; j < V; ++j) to[i * V + j] = sum[j];
  }
}

// dots[i] += the sum of the W partial sums of i. For many i together: for one alone, most of the
// time would go into moving numbers within vectors.
template <int W, typename A>
MSDA_INLINE void add_partial(const A* MSDA_RESTRICT partial, int64_t count,
                             A* MSDA_RESTRICT quarter, A* MSDA_RESTRICT dots) {
  if (W < 4) {
    for (int64_t i = 0; i < count; ++i) dots[i] += partial[i];
  } else {
    fold<W, 4>(partial, count, quarter);
    for (int64_t i = 0; i < count; ++i) {
      const A* part = quarter + 4 * i;
      dots[i] += (part[0] + part[1]) + (part[2] + part[3]);
    }
  }
}

// What C channels of a row add to the dot products and to grad_value; arguments as above.
template <int C, typename A>
MSDA_INLINE void backward_chunk(const A* grad_out, const A* value, A* grad_value, int64_t row,
                                Block<A>& block) {
  constexpr int W = C < kLanes ? C : kLanes;
  const Geometry<A>& g = block.g;
  const int64_t s0 = row * block.n;
  A grad[C];
  copy_chunk<C>(grad_out, grad);
  for (int64_t s = s0; s < s0 + block.n; ++s) {
    A* partial = block.partial + (s - s0) * 4 * W;
    if (!g.inside[s]) {
      std::fill_n(partial, 4 * W, A(0));
      continue;
    }
    partial_dot<C, W>(grad, value + g.p00[s], partial);
    partial_dot<C, W>(grad, value + g.p01[s], partial + W);
    partial_dot<C, W>(grad, value + g.p10[s], partial + 2 * W);
    partial_dot<C, W>(grad, value + g.p11[s], partial + 3 * W);
    // One after the other: on the border, corners share a pixel.
    add_scaled<C>(grad_value + g.p00[s], g.w00[s], grad);
    add_scaled<C>(grad_value + g.p01[s], g.w01[s], grad);
    add_scaled<C>(grad_value + g.p10[s], g.w10[s], grad);
    add_scaled<C>(grad_value + g.p11[s], g.w11[s], grad);
  }
  add_partial<W>(block.partial, 4 * block.n, block.quarter, block.dots[s0]);
}

// From the dot products to the gradients of locations and attention weights.
template <typename A>
MSDA_INLINE void sample_gradients(Block<A>& MSDA_RESTRICT block, int64_t count) {
  const Geometry<A>& g = block.g;
  for (int64_t s = 0; s < count; ++s) {
    const A* dots = block.dots[s];
    A d00 = dots[0], d01 = dots[1], d10 = dots[2], d11 = dots[3];
    d00 = g.in_y0[s] & g.in_x0[s] ? d00 : A(0);  // outside, the value is 0
    d01 = g.in_y0[s] & g.in_x1[s] ? d01 : A(0);
    d10 = g.in_y1[s] & g.in_x0[s] ? d10 : A(0);
    d11 = g.in_y1[s] & g.in_x1[s] ? d11 : A(0);
    const A upper = g.x0[s] * d00 + g.x1[s] * d01, lower = g.x0[s] * d10 + g.x1[s] * d11;
    const A dx = g.y0[s] * (d01 - d00) + g.y1[s] * (d11 - d10);
    const A dy = g.x0[s] * (d10 - d00) + g.x1[s] * (d11 - d01);
    block.grad_attention[s] = g.y0[s] * upper + g.y1[s] * lower;
    block.grad_locations[2 * s] = block.attention[s] * block.level.width[s] * dx;
    block.grad_locations[2 * s + 1] = block.attention[s] * block.level.height[s] * dy;
  }
}

// locations, attention, value and the gradient in `out` -> grad_locations and grad_attention;
// grad_value (S, D) is added to.
template <typename A>
MSDA_INLINE void backward_rows(Block<A>& block, const A* value, A* grad_value, int64_t rows) {
  const int64_t count = rows * block.n;
  locate(block.locations, block.attention, block.level, count, static_cast<int32_t>(block.D),
         block.g);
  std::fill_n(block.dots[0], 4 * count, A(0));
  for (int64_t row = 0; row < rows; ++row) {
    const A* grad_out = block.out.data() + row * block.D;
#define MSDA_CHUNK(C) \
  backward_chunk<C>(grad_out + channel, value + channel, grad_value + channel, row, block)
    MSDA_FOR_CHUNKS(block.D, MSDA_CHUNK)
#undef MSDA_CHUNK
  }
  sample_gradients(block, count);
}

// (rows, length) from one place to another, whose rows are their strides apart.
template <typename From, typename To>
MSDA_INLINE void copy_rows(const From* MSDA_RESTRICT from, int64_t from_stride,
                           To* MSDA_RESTRICT to, int64_t to_stride, int64_t rows, int64_t length) {
  for (int64_t row = 0; row < rows; ++row) {
#define MSDA_CHUNK(C) \
  copy_chunk<C>(from + row * from_stride + channel, to + row * to_stride + channel)
    MSDA_FOR_CHUNKS(length, MSDA_CHUNK)
#undef MSDA_CHUNK
  }
}

}  // namespace msda
