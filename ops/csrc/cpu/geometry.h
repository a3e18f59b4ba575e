// Where the samples of multi-scale deformable attention lie. This and the kernels are plain loops in
// the form that compilers vectorise.
//
// Letters: B pictures, S pixels of all levels together, Q queries, M heads, D channels of a head,
// L levels, P points. A row is one (picture, query, head); it has n = L * P samples. T is the type
// of the values in memory; A is the type computed in: double for double, else float.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../sizes.h"
#include "vectorise.h"

namespace msda {

// Length of an array of samples. Not a power of two, or the elements that belong to one sample would
// all compete for the same lines of the cache.
constexpr int64_t kCapacity = kMaxSamples + 16;
// Rows are taken in blocks of about this many samples, to fill vectors even where a row has few.
constexpr int64_t kBlockSamples = 96;

inline int64_t block_rows(const Sizes& sizes) {
  return std::max<int64_t>(1, kBlockSamples / sizes.samples());
}

// The level of each sample of a block of rows.
template <typename A>
struct alignas(64) LevelTable {
  A width[kCapacity], height[kCapacity];
  A across[kCapacity], down[kCapacity];          // a pixel, in parts of the level
  int32_t columns[kCapacity], lines[kCapacity];  // width and height once more
  int32_t first[kCapacity];                      // index of the level's first pixel

  LevelTable(const Sizes& sizes, const std::vector<int64_t>& shapes) {
    int64_t s = 0;
    for (int64_t row = 0; row < block_rows(sizes); ++row) {
      int64_t pixels = 0;
      for (int64_t level = 0; level < sizes.L; ++level) {
        const int64_t h = shapes[2 * level], w = shapes[2 * level + 1];
        for (int64_t point = 0; point < sizes.P; ++point, ++s) {
          width[s] = static_cast<A>(w);
          height[s] = static_cast<A>(h);
          across[s] = A(1) / static_cast<A>(w);
          down[s] = A(1) / static_cast<A>(h);
          columns[s] = static_cast<int32_t>(w);
          lines[s] = static_cast<int32_t>(h);
          first[s] = static_cast<int32_t>(pixels);
        }
        pixels += h * w;
      }
    }
  }
};

// The four pixels around each sample of a block, with their bilinear weights: corner jk is the pixel
// in line y + j and column x + k.
//
// A corner outside the level has weight 0 and the place of a pixel inside, so each is safe to read.
// Where all four are outside, and where the location is not finite, `inside` is 0: such samples
// count as 0.
template <typename A>
struct alignas(64) Geometry {
  int32_t inside[kCapacity];
  int32_t p00[kCapacity], p01[kCapacity], p10[kCapacity], p11[kCapacity];  // pixel index times D
  int32_t in_x0[kCapacity], in_x1[kCapacity], in_y0[kCapacity], in_y1[kCapacity];
  A x0[kCapacity], x1[kCapacity], y0[kCapacity], y1[kCapacity];
  A w00[kCapacity], w01[kCapacity], w10[kCapacity], w11[kCapacity];  // bilinear times attention
};

// locations: (count, 2), x then y, in [0, 1] of the level; attention: (count); pixels are D apart.
template <typename A>
MSDA_INLINE void locate(const A* MSDA_RESTRICT locations, const A* MSDA_RESTRICT attention,
                        const LevelTable<A>& MSDA_RESTRICT level, int64_t count, int32_t D,
                        Geometry<A>& MSDA_RESTRICT g) {
  for (int64_t s = 0; s < count; ++s) {
    const A px = locations[2 * s] * level.width[s] - A(0.5);
    const A py = locations[2 * s + 1] * level.height[s] - A(0.5);
    // Comparisons are false for NaN. No && here and below: a branch would keep the loop scalar.
    const int32_t inside =
        (px > A(-1)) & (px < level.width[s]) & (py > A(-1)) & (py < level.height[s]);
    const A x = inside ? px : A(0), y = inside ? py : A(0);
    int32_t left = static_cast<int32_t>(x), top = static_cast<int32_t>(y);
    left -= static_cast<A>(left) > x;  // truncated -> floor
    top -= static_cast<A>(top) > y;
    const A fx = x - static_cast<A>(left), fy = y - static_cast<A>(top);
    const int32_t left_in = left >= 0, right_in = left + 1 < level.columns[s];
    const int32_t top_in = top >= 0, bottom_in = top + 1 < level.lines[s];
    const int32_t column0 = left_in ? left : 0, column1 = right_in ? left + 1 : left;
    const int32_t line0 = level.first[s] + (top_in ? top : 0) * level.columns[s];
    const int32_t line1 = level.first[s] + (bottom_in ? top + 1 : top) * level.columns[s];
    g.inside[s] = inside;
    g.p00[s] = (line0 + column0) * D;
    g.p01[s] = (line0 + column1) * D;
    g.p10[s] = (line1 + column0) * D;
    g.p11[s] = (line1 + column1) * D;
    g.in_x0[s] = left_in;
    g.in_x1[s] = right_in;
    g.in_y0[s] = top_in;
    g.in_y1[s] = bottom_in;
    const A x0 = left_in ? A(1) - fx : A(0), x1 = right_in ? fx : A(0);
    const A y0 = top_in ? A(1) - fy : A(0), y1 = bottom_in ? fy : A(0);
    g.x0[s] = x0;
    g.x1[s] = x1;
    g.y0[s] = y0;
    g.y1[s] = y1;
    g.w00[s] = attention[s] * y0 * x0;
    g.w01[s] = attention[s] * y0 * x1;
    g.w10[s] = attention[s] * y1 * x0;
    g.w11[s] = attention[s] * y1 * x1;
  }
}

// CALL(C) for chunks of C = 32, 16, 8, 4 or 1 channels, `channel` being the first, until all D are
// done: a chunk whose size is a constant stays in registers.
#define MSDA_FOR_CHUNKS(D, CALL)                              \
  for (int64_t channel = 0; channel < (D);) {                 \
    const int64_t left = (D) - channel;                       \
    if (left >= 32) {                                         \
      CALL(32);                                               \
      channel += 32;                                          \
    } else if (left >= 16) {                                  \
      CALL(16);                                               \
      channel += 16;                                          \
    } else if (left >= 8) {                                   \
      CALL(8);                                                \
      channel += 8;                                           \
    } else if (left >= 4) {                                   \
      CALL(4);                                                \
      channel += 4;                                           \
    } else {                                                  \
      CALL(1);                                                \
      channel += 1;                                           \
    }                                                         \
  }

}  // namespace msda
