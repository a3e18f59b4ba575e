// Backward, in two kernels. The first gives the gradients of locations and attention weights, and
// chains the samples that lie between the same four pixels. The second follows the chains: what the
// samples of one give to its pixels is summed in registers, and memory sees an addition for a pixel and
// chain, not for a pixel and sample. The links take 16 bytes a sample, of double 32. Were all samples of
// a level between the same pixels, a chain of them all would take its time.
#pragma once

#include "row_samples.cuh"

namespace msda {

// On an H100 the fastest, or within 2 % of it: of more threads each has too few registers.
constexpr int kBackwardThreads = 256;
constexpr int kChainThreads = 128;

constexpr uint32_t kEnd = ~0u;       // of a chain
constexpr int kSamplesOfChain = 16;  // on average, at most: the samples of a cell may be in several

// The chains of a head of a picture; their links are its samples, numbered query by query.
struct Chains {
  uint32_t first[kMaxLevels];    // of a level
  uint32_t of_cell[kMaxLevels];  // of the level
  uint32_t count;

  __device__ __forceinline__ uint32_t at(int level, uint32_t cell, uint32_t query) const {
    return first[level] + cell * of_cell[level] + query % of_cell[level];
  }
};

// ---- Gradients of locations and attention weights -----------------------------------------------

// From the products of a lane's channels, with each of `Lanes` samples, to those of all channels of the
// row with the sample that is the lane's, in products[0].
template <int Lanes, typename A>
__device__ __forceinline__ void exchange(A (&products)[Lanes][4], int lane) {
  MSDA_UNROLL for (int half = Lanes / 2; half > 0; half /= 2) {
    const bool upper = lane & half;
    MSDA_UNROLL for (int s = 0; s < half; ++s) {
      MSDA_UNROLL for (int corner = 0; corner < 4; ++corner) {
        const A low = products[s][corner], high = products[s + half][corner];
        products[s][corner] =
            (upper ? high : low) + __shfl_xor_sync(~0u, upper ? low : high, half);
      }
    }
  }
}

// The sums over the row's channels of the gradient times the values at the corners of the lane's
// sample, which is one of those in `corners`.
template <typename Numbers, typename Pixels, typename A, int V>
__device__ __forceinline__ void own_products(const Vector<uint32_t, 4>* corners, int lane, int lanes,
                                             int samples, const Pixels& pixels,
                                             const A (&grad)[V], A (&own)[4]) {
  constexpr int kLanes = Numbers::kChannels / V;
  if constexpr (kLanes > 0 && kLanes <= 8) {
    A products[kLanes][4] = {};
    MSDA_UNROLL for (int s = 0; s < kLanes; ++s) {
      if (s < samples) backward_sample(corners[slot(s, kLanes)], pixels, grad, products[s]);
    }
    exchange(products, lane);
    MSDA_UNROLL for (int corner = 0; corner < 4; ++corner) own[corner] = products[0][corner];
  } else {
    for (int s = 0; s < samples; ++s) {
      A products[4] = {};
      backward_sample(corners[slot(s, lanes)], pixels, grad, products);
      MSDA_UNROLL for (int corner = 0; corner < 4; ++corner) {
        products[corner] = sum_of_lanes(products[corner], lanes);
        own[corner] = lane == s ? products[corner] : own[corner];
      }
    }
  }
}

template <typename T, typename A, int V, typename Numbers, typename Samples>
__global__ void __launch_bounds__(kBackwardThreads, kBlocks)
    sample_gradients_kernel(const __grid_constant__ Walk walk,
                            const __grid_constant__ Chains chains, const T* __restrict__ values,
                            const Samples samples, const T* __restrict__ grad_out,
                            uint32_t* __restrict__ newest, Link<A>* __restrict__ links,
                            A* __restrict__ grad_locations, A* __restrict__ grad_attention) {
  __shared__ Vector<uint32_t, 4> corners[kBackwardThreads];
  const Counts<Numbers, V> count(walk);
  const Sizes& sizes = walk.sizes;
  const int lane = threadIdx.x % count.lanes;
  for_rows(walk, count.lanes, [&](const Row& row) {
    const int64_t index = row.index(sizes), slice = row.picture * sizes.M + row.head;
    const auto of_row = samples.of_row(index, row.query, count.samples, lane, count.lanes);
    const OwnSamples<A, V, Numbers> own_samples(walk, count, of_row, lane);
    A* const to_locations = grad_locations + index * 2 * count.samples;
    A* const to_attention = grad_attention + index * count.samples;
    for (int start = 0; start < count.channels; start += count.lanes * V) {
      const LaneChannels<T, V> channels(start, lane, count.lanes);
      const bool mine = row.valid && channels.first[0] < count.channels;
      const auto pixels = channels.of_pixels(values, sizes, row);
      A grad[V] = {};
      if (mine) channels.load(grad_out + index * count.channels, grad);
#pragma unroll
      for (int first = 0; first < count.samples; first += count.lanes) {
        const int own = first + lane, in = min(own, count.samples - 1) / count.points;
        const Level& level = walk.level[in];
        const uint32_t number = row.query * static_cast<uint32_t>(count.samples) + own;
        const bool sampled = own < count.samples;
        Sample<A> sample{};
        Place<A> place{};
        if (sampled) {
          sample = own_samples.at(first, of_row, level);
          place = locate(sample.x, sample.y, level);
          corners[slot(lane, count.lanes)] = place.pixel;
        }
        const bool chained = sampled && row.valid && place.near && start == 0;
        uint32_t next = kEnd;
        if (chained) {
          const uint32_t chain = chains.at(in, place.cell, row.query);
          next = atomicExch(newest + slice * chains.count + chain, number);
        }
        __syncwarp();
        A products[4] = {};
        own_products<Numbers>(corners, lane, count.lanes, min(count.lanes, count.samples - first),
                              pixels, grad, products);
        __syncwarp();
        if (sampled && row.valid) {
          const bool more = start > 0;  // channels than the lanes of the row hold at once
          const auto part = gradient(place, sample.attention, products);
          const A of_x = of_row.of_x(part.x, level), of_y = of_row.of_y(part.y, level);
          to_attention[own] = part.attention + (more ? to_attention[own] : A(0));
          to_locations[2 * own] = of_x + (more ? to_locations[2 * own] : A(0));
          to_locations[2 * own + 1] = of_y + (more ? to_locations[2 * own + 1] : A(0));
        }
        if (chained) {
          links[slice * sizes.Q * count.samples + number] = {place.right, place.lower,
                                                             sample.attention, next};
        }
      }
    }
    of_row.finish(to_attention, row.valid ? count.samples : 0, lane, count.lanes);
  });
}

// ---- Gradients of values ------------------------------------------------------------------------

// They are summed fast, in floating point: the order of a pixel's chains, and of the links of each, and
// hence rounding, differ from run to run ...
template <typename A>
struct FloatSums {
  using Sum = A;
  A* sums;

  __device__ __forceinline__ A scale() const { return 1; }
  __device__ __forceinline__ static Sum term(A x, A) { return x; }
  template <int V>
  __device__ __forceinline__ void add(int64_t first, const Sum (&sum)[V]) const {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    constexpr bool kAtOnce = sizeof(A) == 4 && V == 4;
#else
    constexpr bool kAtOnce = false;
#endif
    if constexpr (kAtOnce) {
      atomicAdd(reinterpret_cast<float4*>(sums + first),
                make_float4(sum[0], sum[1], sum[2], sum[3]));
    } else {
      MSDA_UNROLL for (int c = 0; c < V; ++c) atomicAdd(sums + first + c, sum[c]);
    }
  }
};

// ... or as integers of 1 / scale, whose sum is the same in any order. The scale leaves room for
// as many terms as there are samples; a term is at most the largest gradient of the output, as no
// bilinear weight exceeds 1, times its attention weight.
template <typename A>
struct IntegerSums {
  using Sum = long long;
  unsigned long long* sums;
  const A* largest;  // of |grad_output| * |attention|, on the device
  int bits;

  __device__ __forceinline__ double scale() const {
    const A limit = *largest;
    return limit > 0 ? ldexp(1.0, bits) / static_cast<double>(limit) : 0.0;
  }
  __device__ __forceinline__ static Sum term(A x, double scale) {
    return __double2ll_rn(static_cast<double>(x) * scale);
  }
  template <int V>
  __device__ __forceinline__ void add(int64_t first, const Sum (&sum)[V]) const {
    MSDA_UNROLL for (int c = 0; c < V; ++c) {
      atomicAdd(sums + first + c, static_cast<unsigned long long>(sum[c]));
    }
  }
};

// The lanes of a chain have V channels each.
template <typename T, typename A, int V, typename Numbers, typename Sums>
__global__ void __launch_bounds__(kChainThreads)
    value_gradients_kernel(const __grid_constant__ Walk walk, const __grid_constant__ Chains chains,
                           const T* __restrict__ grad_out, const uint32_t* __restrict__ newest,
                           const Link<A>* __restrict__ links, const Sums sums) {
  using Sum = typename Sums::Sum;
  static_assert(LaneChannels<T, V>::kPieces == 1, "the channels of an addition are neighbours");
  const Counts<Numbers, V> count(walk);
  const Sizes& sizes = walk.sizes;
  const int64_t chain = (blockIdx.x * int64_t(blockDim.x) + threadIdx.x) / count.lanes;
  if (chain >= sizes.B * sizes.M * chains.count) return;
  const uint32_t last = newest[chain];
  if (last == kEnd) return;
  const int64_t slice = chain / chains.count;
  const uint32_t of_slice = static_cast<uint32_t>(chain - slice * chains.count);
  int in = 0;
  while (in + 1 < sizes.L && of_slice >= chains.first[in + 1]) ++in;
  const Level& level = walk.level[in];
  const Cell cell((of_slice - chains.first[in]) / chains.of_cell[in], level);
  const int64_t picture = slice / sizes.M, head = slice % sizes.M;
  const Link<A>* const of_head = links + slice * sizes.Q * count.samples;
  const int64_t stride = sizes.M * count.channels;  // from query to query, and from pixel to pixel
  const auto scale = sums.scale();
  for (int start = 0; start < count.channels; start += count.lanes * V) {
    const LaneChannels<T, V> channels(start, threadIdx.x % count.lanes, count.lanes);
    if (channels.first[0] >= count.channels) continue;
    const T* const from = grad_out + picture * sizes.Q * stride + head * count.channels;
    Sum sum[4][V] = {};
    Link<A> following = of_head[last];
    for (uint32_t number = last; number != kEnd;) {
      const Link<A> link = following;
      A grad[V];
      channels.load(from + number / count.samples * stride, grad);
      number = link.next;
      if (number != kEnd) following = of_head[number];
      MSDA_UNROLL for (int corner = 0; corner < 4; ++corner) {
        const A weight = link.weight(corner);
        MSDA_UNROLL for (int c = 0; c < V; ++c) {
          sum[corner][c] += Sums::term(weight * grad[c], scale);
        }
      }
    }
    const int64_t to = picture * sizes.S * stride + head * count.channels + channels.first[0];
    MSDA_UNROLL for (int corner = 0; corner < 4; ++corner) {
      if (cell.inside(corner, level)) {
        sums.add(to + cell.pixel(corner, level) * stride, sum[corner]);
      }
    }
  }
}

// The largest size, as the bits of a float; they have the order of the non-negative numbers that
// they stand for.
template <typename T>
__global__ void largest_kernel(const T* numbers, int64_t count, unsigned int* largest) {
  float mine = 0;
  for (int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; i < count;
       i += int64_t(gridDim.x) * blockDim.x) {
    const float size = fabsf(static_cast<float>(numbers[i]));
    mine = size <= mine ? mine : size;  // NaN stays
  }
  atomicMax(largest, __float_as_uint(mine));
}

template <typename A>
__global__ void multiply_kernel(const unsigned int* largest, bool both, A* product) {
  // A little more: the numbers may be doubles, rounded down.
  *product = static_cast<A>(__uint_as_float(largest[0])) * static_cast<A>(1.0000005) *
             (both ? static_cast<A>(__uint_as_float(largest[1])) : A(1));
}

template <typename T, typename A>
__global__ void from_integers_kernel(const long long* sums, const A* largest, int bits,
                                     int64_t count, T* out) {
  const double unit = ldexp(static_cast<double>(*largest), -bits);  // NaN and infinity spread
  for (int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; i < count;
       i += int64_t(gridDim.x) * blockDim.x) {
    out[i] = static_cast<T>(static_cast<A>(static_cast<double>(sums[i]) * unit));
  }
}

}  // namespace msda
