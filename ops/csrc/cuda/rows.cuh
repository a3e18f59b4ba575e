// How the kernels go through the rows: which thread takes which, and in which order.
//
// A row's `lanes`, a power of two and at most a warp, are neighbouring threads that share its samples:
// each works out where one of them lies and what it counts for, and all of them read all of those,
// V channels each. Each block goes through a run of neighbouring rows: a picture's queries, where
// they are the pixels of the levels, in tiles of 8 x 8, and only so many heads as fill a line of the
// cache, so that most of what it reads lies in the multiprocessor's own cache.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>

#include "sample.cuh"

namespace msda {

constexpr int kMaxLevels = 64;
constexpr int kWarp = 32;
constexpr int kLine = 128;  // bytes
constexpr int kTile = 8;    // pixels
constexpr int kTilePixels = kTile * kTile;

// Divides numbers below 2^31 by multiplying.
struct Divisor {
  uint32_t divisor, factor, shift;

  Divisor() = default;
  explicit Divisor(uint32_t divisor) : divisor(divisor), shift(31) {
    while ((uint64_t(1) << (shift - 31)) < divisor) ++shift;
    factor = static_cast<uint32_t>(((uint64_t(1) << shift) + divisor - 1) / divisor);
  }
  __device__ __forceinline__ uint32_t divide(uint32_t x) const {
    return static_cast<uint32_t>((uint64_t(x) * factor) >> shift);
  }
};

struct Walk {
  Sizes sizes;
  Level level[kMaxLevels];
  Divisor tiles_across[kMaxLevels];
  uint32_t tiles[kMaxLevels];
  bool tiled;          // the queries are the pixels of the levels
  int lanes;           // of a row
  Divisor heads;       // that are walked through together
  int64_t positions;   // of a picture: its queries, and those of tiles beyond the levels' edges
  int64_t slices;      // of `heads` heads of a picture

  __host__ __device__ int64_t rows_of_slice() const { return positions * heads.divisor; }
};

struct Row {
  bool valid;             // else it is some other, which is not to be written
  uint32_t query, head;
  int64_t picture;
  // Its place in the (B, Q, M) arrays.
  __device__ __forceinline__ int64_t index(const Sizes& sizes) const {
    return (picture * sizes.Q + query) * sizes.M + head;
  }
};

// The pixel that a position stands for, or Q.
__device__ __forceinline__ uint32_t query_at(const Walk& walk, uint32_t position) {
  const uint32_t queries = static_cast<uint32_t>(walk.sizes.Q);
  if (!walk.tiled) return position;
  uint32_t tile = position / kTilePixels;
  const uint32_t in_tile = position % kTilePixels;
  int level = 0;
  for (; level + 1 < walk.sizes.L && tile >= walk.tiles[level]; ++level) tile -= walk.tiles[level];
  const Level& of = walk.level[level];
  const uint32_t down = walk.tiles_across[level].divide(tile);
  const uint32_t across = tile - down * walk.tiles_across[level].divisor;
  const uint32_t y = down * kTile + in_tile / kTile, x = across * kTile + in_tile % kTile;
  const bool inside = x < static_cast<uint32_t>(of.width) && y < static_cast<uint32_t>(of.height);
  return inside ? of.first + y * of.width + x : queries;
}

// f(row) for the rows of this block; all threads of a warp call it equally often.
template <typename F>
__device__ __forceinline__ void for_rows(const Walk& walk, int lanes, const F& f) {
  const int64_t of_slice = walk.rows_of_slice(), all = walk.slices * of_slice;
  const int64_t begin = all * blockIdx.x / gridDim.x, end = all * (blockIdx.x + 1) / gridDim.x;
  const uint32_t heads = walk.heads.divisor;
  const uint32_t in_picture = static_cast<uint32_t>(walk.sizes.M) / heads;
  const uint32_t step = blockDim.x / lanes, in_warp = threadIdx.x % kWarp / lanes;
  const uint32_t warp = threadIdx.x / kWarp * (kWarp / lanes);
#pragma unroll 1
  for (int64_t slice = begin / of_slice; slice * of_slice < end; ++slice) {
    const int64_t before = slice * of_slice;
    const uint32_t first = static_cast<uint32_t>(begin > before ? begin - before : 0);
    const uint32_t last = static_cast<uint32_t>(end < before + of_slice ? end - before : of_slice);
    const int64_t picture = slice / in_picture;
    const uint32_t first_head = static_cast<uint32_t>(slice % in_picture) * heads;
#pragma unroll 1
    for (uint32_t base = first + warp; base < last; base += step) {
      const uint32_t index = base + in_warp;
      Row row{index < last, 0, first_head, picture};
      if (row.valid) {
        const uint32_t position = walk.heads.divide(index);
        row.query = query_at(walk, position);
        row.head += index - position * heads;
        row.valid = row.query < static_cast<uint32_t>(walk.sizes.Q);
        if (!row.valid) row.query = 0;
      }
      f(row);
    }
  }
}

// Where a block keeps, for the neighbours of the thread that worked it out, a sample of their row. The
// rows of a warp have the same sample in different banks: 8 slots fill them all.
__device__ __forceinline__ int slot(int sample, int lanes) {
  const int first = threadIdx.x / lanes * lanes;
  return first + (sample ^ (first % kWarp / 8 % lanes));
}

// Among the neighbouring threads of a row.
template <typename A>
__device__ __forceinline__ A sum_of_lanes(A x, int lanes) {
  for (int other = lanes / 2; other > 0; other /= 2) x += __shfl_xor_sync(~0u, x, other);
  return x;
}

template <typename A>
__device__ __forceinline__ A largest_of_lanes(A x, int lanes) {
  for (int other = lanes / 2; other > 0; other /= 2) {
    const A y = __shfl_xor_sync(~0u, x, other);
    x = y > x ? y : x;
  }
  return x;
}

}  // namespace msda
