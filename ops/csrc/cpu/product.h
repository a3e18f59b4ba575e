// Products of matrices with a fixed number of columns, whose sums stay in registers.
#pragma once

#include <cstdint>

#include "vectors.h"

namespace msda {

constexpr int64_t kPanel = 32;  // columns

// (rows, depth) times (depth, kPanel); numbers of a row, or of a depth, lie their strides apart.
struct Factors {
  const float* a;
  int64_t a_row, a_depth;
  const float* b;
  int64_t b_depth, depth;
  float* out;
  int64_t out_row;
  bool add;  // to what is in out
};

template <int64_t LANES, int64_t ROWS>
MSDA_INLINE void multiply_rows(const Factors& f, int64_t row) {
  using V = typename Vector<LANES>::Lanes;
  constexpr int64_t kVectors = 2;
  const float* a = f.a + row * f.a_row;
  for (int64_t column = 0; column < kPanel; column += kVectors * LANES) {
    const float* b = f.b + column;
    V sums[ROWS][kVectors] = {};
    for (int64_t d = 0; d < f.depth; ++d) {
      V b0, b1;
      load(b + d * f.b_depth, b0);
      load(b + d * f.b_depth + LANES, b1);
      for (int64_t i = 0; i < ROWS; ++i) {
        const float x = a[i * f.a_row + d * f.a_depth];
        sums[i][0] += x * b0;
        sums[i][1] += x * b1;
      }
    }
    for (int64_t i = 0; i < ROWS; ++i) {
      float* out = f.out + (row + i) * f.out_row + column;
      for (int64_t j = 0; j < kVectors; ++j) {
        if (f.add) {
          V before;
          load(out + j * LANES, before);
          sums[i][j] += before;
        }
        store(sums[i][j], out + j * LANES);
      }
    }
  }
}

template <int64_t LANES, int64_t ROWS>
MSDA_INLINE void multiply_last_rows(const Factors& f, int64_t row, int64_t rows) {
  if constexpr (ROWS > 0) {
    if (rows == ROWS) {
      multiply_rows<LANES, ROWS>(f, row);
    } else {
      multiply_last_rows<LANES, ROWS - 1>(f, row, rows);
    }
  }
}

template <int64_t LANES>
MSDA_INLINE void multiply(const Factors& f, int64_t rows) {
  constexpr int64_t kRows = LANES == 16 ? 14 : 6;  // as many sums as fit into the registers
  int64_t row = 0;
  for (; row + kRows <= rows; row += kRows) multiply_rows<LANES, kRows>(f, row);
  multiply_last_rows<LANES, kRows - 1>(f, row, rows - row);
}

}  // namespace msda
