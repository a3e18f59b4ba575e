// 3x3 convolutions by Winograd's filtering F(4x4, 3x3): Lavin and Gray 2016, "Fast Algorithms for
// Convolutional Neural Networks", equation 8, at the points 0, 1, -1, 1/2 and -2 (Barabasz et al. 2020,
// "Error analysis and improving the accuracy of Winograd convolution").
//
// A patch d of 6x6 inputs and a filter g become B^T d B and G g G^T; the convolution is a product of
// matrices for each of their 36 elements; and A^T m A is a tile of 4x4 outputs.
//
// Maps have channels last; T is their type in memory.
#pragma once

#include <algorithm>
#include <cstdint>

#include "product.h"
#include "vectors.h"

namespace msda {
namespace winograd {

constexpr int64_t kTile = 4, kPatch = 6, kElements = kPatch * kPatch;

// A matrix for each element of a patch. They lie a line of the cache more apart than they are large,
// or their sizes, often powers of two, would have all of them compete for the same place in the cache.
struct Elements {
  float* data;
  int64_t size;  // of a matrix
  MSDA_INLINE float* operator[](int64_t element) const { return data + element * (size + 16); }
  static int64_t floats(int64_t size) { return kElements * (size + 16); }
};

// ---- The matrices -------------------------------------------------------------------------------

// Each multiplies a column of `from` vectors, `step` apart, and makes one of `to` vectors.

struct TransposedB {
  static constexpr int64_t from = kPatch, to = kPatch;
  template <typename V>
  MSDA_INLINE static void multiply(const V* d, int64_t step, V* out, int64_t out_step) {
    const V d1 = d[step], d2 = d[2 * step], d3 = d[3 * step], d4 = d[4 * step];
    const V even = d4 - d2, odd = d3 - d1;
    out[0] = d[0] - d2 + 1.5f * odd + even;
    out[out_step] = d4 - d1 + 0.5f * d2 + 2.5f * d3;
    out[2 * out_step] = d4 + d1 + 0.5f * d3 - 2.5f * d2;
    out[3 * out_step] = even + 2.0f * odd;
    out[4 * out_step] = even - 0.5f * odd;
    out[5 * out_step] = d[5 * step] - d3 + 1.5f * even - odd;
  }
};

struct G {
  static constexpr int64_t from = 3, to = kPatch;
  template <typename V>
  MSDA_INLINE static void multiply(const V* g, int64_t step, V* out, int64_t out_step) {
    const V g0 = g[0], g1 = g[step], g2 = g[2 * step];
    out[0] = g0;
    out[out_step] = (1.0f / 3) * (g0 + g1 + g2);
    out[2 * out_step] = (1.0f / 3) * (g1 - g0 - g2);
    out[3 * out_step] = (-4.0f / 15) * (4.0f * g0 + 2.0f * g1 + g2);
    out[4 * out_step] = (1.0f / 15) * (g0 - 2.0f * g1 + 4.0f * g2);
    out[5 * out_step] = g2;
  }
};

struct TransposedA {
  static constexpr int64_t from = kPatch, to = kTile;
  template <typename V>
  MSDA_INLINE static void multiply(const V* m, int64_t step, V* out, int64_t out_step) {
    const V sum = m[step] + m[2 * step], difference = m[step] - m[2 * step];
    const V m3 = m[3 * step], m4 = m[4 * step];
    out[0] = m[0] + sum + m3 + m4;
    out[out_step] = difference + 0.5f * m3 - 2.0f * m4;
    out[2 * out_step] = sum + 0.25f * m3 + 4.0f * m4;
    out[3 * out_step] = difference + 0.125f * m3 - 8.0f * m4 + m[5 * step];
  }
};

// For the gradient of the filters, to which the tiles of the output's gradient lead back by A ...
struct A {
  static constexpr int64_t from = kTile, to = kPatch;
  template <typename V>
  MSDA_INLINE static void multiply(const V* y, int64_t step, V* out, int64_t out_step) {
    const V y0 = y[0], y1 = y[step], y2 = y[2 * step], y3 = y[3 * step];
    out[0] = y0;
    out[out_step] = y0 + y1 + y2 + y3;
    out[2 * out_step] = y0 - y1 + y2 - y3;
    out[3 * out_step] = y0 + 0.5f * y1 + 0.25f * y2 + 0.125f * y3;
    out[4 * out_step] = y0 - 2.0f * y1 + 4.0f * y2 - 8.0f * y3;
    out[5 * out_step] = y3;
  }
};

// ... and their products by G^T.
struct TransposedG {
  static constexpr int64_t from = kPatch, to = 3;
  template <typename V>
  MSDA_INLINE static void multiply(const V* u, int64_t step, V* out, int64_t out_step) {
    const V third = (1.0f / 3) * u[step], other = (1.0f / 3) * u[2 * step];
    const V u3 = (4.0f / 15) * u[3 * step], u4 = (1.0f / 15) * u[4 * step];
    out[0] = u[0] + third - other - 4.0f * u3 + u4;
    out[out_step] = third + other - 2.0f * u3 - 2.0f * u4;
    out[2 * out_step] = third - other - u3 + 4.0f * u4 + u[5 * step];
  }
};

// M x M^T of a matrix x of vectors, row by row.
template <typename M, typename V>
MSDA_INLINE void transform(const V* x, V* out) {
  V half[M::to * M::from];
  for (int64_t i = 0; i < M::from; ++i) M::multiply(x + i, M::from, half + i, M::from);
  for (int64_t i = 0; i < M::to; ++i) M::multiply(half + i * M::from, 1, out + i * M::to, 1);
}

// ---- Tiles --------------------------------------------------------------------------------------

struct Maps {
  int64_t B, H, W;
  int64_t down() const { return (H + kTile - 1) / kTile; }  // tiles
  int64_t right() const { return (W + kTile - 1) / kTile; }
  int64_t tiles() const { return B * down() * right(); }
};

// Where the outputs of a tile are; some may be below or right of the picture.
struct Place {
  int64_t picture, top, left;
  MSDA_INLINE Place(const Maps& maps, int64_t tile)
      : picture(tile / (maps.down() * maps.right())),
        top(tile / maps.right() % maps.down() * kTile),
        left(tile % maps.right() * kTile) {}
};

// Some channels of maps whose pixels have `pixel` in all, of the tiles [first, first + count): their
// patches transformed by B^T, or their outputs by A. to: (..., channels), from row `row` on; zeros: as
// many as there are channels.
template <int64_t LANES, typename M, typename T>
MSDA_INLINE void transform_tiles(const T* x, const Maps& maps, int64_t channels, int64_t pixel,
                                 int64_t first, int64_t count, const T* zeros, const Elements& to,
                                 int64_t row) {
  constexpr int64_t border = (M::from - kTile) / 2;
  using V = typename Vector<LANES>::Lanes;
  for (int64_t t = 0; t < count; ++t) {
    const Place place(maps, first + t);
    const T* pixels[M::from * M::from];
    for (int64_t i = 0; i < M::from * M::from; ++i) {
      const int64_t line = place.top - border + i / M::from;
      const int64_t column = place.left - border + i % M::from;
      const bool inside = 0 <= line && line < maps.H && 0 <= column && column < maps.W;
      pixels[i] =
          inside ? x + ((place.picture * maps.H + line) * maps.W + column) * pixel : zeros;
    }
    for (int64_t c = 0; c < channels; c += LANES) {
      V patch[M::from * M::from], transformed[kElements];
      for (int64_t i = 0; i < M::from * M::from; ++i) load(pixels[i] + c, patch[i]);
      transform<M>(patch, transformed);
      for (int64_t i = 0; i < kElements; ++i) {
        store(transformed[i], to[i] + (row + t) * channels + c);
      }
    }
  }
}

// From m, (count, kPanel), to the outputs of tiles [first, first + count). out: their first channel at
// the first pixel of all; bias: of these channels.
template <int64_t LANES, typename T>
MSDA_INLINE void write_tiles(const Elements& m, const Maps& maps, int64_t pixel, int64_t first,
                             int64_t count, const float* bias, T* out) {
  using V = typename Vector<LANES>::Lanes;
  for (int64_t t = 0; t < count; ++t) {
    const Place place(maps, first + t);
    const int64_t rows = std::min(kTile, maps.H - place.top);
    const int64_t columns = std::min(kTile, maps.W - place.left);
    T* corner = out + ((place.picture * maps.H + place.top) * maps.W + place.left) * pixel;
    for (int64_t k = 0; k < kPanel; k += LANES) {
      V elements[kElements], tile[kTile * kTile];
      for (int64_t i = 0; i < kElements; ++i) {
        load(m[i] + t * kPanel + k, elements[i]);
      }
      transform<TransposedA>(elements, tile);
      V shift;
      load(bias + k, shift);
      for (V& outputs : tile) outputs = outputs + shift;
      if (rows == kTile && columns == kTile) {  // indices that are known: from registers
        for (int64_t i = 0; i < kTile * kTile; ++i) {
          store(tile[i], corner + (i / kTile * maps.W + i % kTile) * pixel + k);
        }
        continue;
      }
      for (int64_t y = 0; y < rows; ++y) {
        for (int64_t x = 0; x < columns; ++x) {
          store(tile[y * kTile + x], corner + (y * maps.W + x) * pixel + k);
        }
      }
    }
  }
}

}  // namespace winograd
}  // namespace msda
