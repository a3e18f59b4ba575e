// The kernels: forward, backward, and what makes backward's sums deterministic.
#pragma once

#include <torch/headeronly/util/BFloat16.h>

#include "rows.cuh"

namespace msda {

// Of 256 x 3, 384 x 2, 512 x 2 and 1024 x 1, on an H100 and an H200 the fastest for bfloat16 and
// within 3 % of the fastest for float32.
constexpr int kThreads = 384;
constexpr int kBlocks = 2;  // of a multiprocessor, at least

// ---- Where the samples of a row come from -------------------------------------------------------

// What a row alone reads should not take the values' place in the cache.
template <typename A>
__device__ __forceinline__ A read_once(const A* from) {
  return __ldcs(from);
}

template <typename A>
struct Sample {
  A x, y, attention;  // x and y in pixels
};

// Locations (B, Q, M, L, P, 2) and attention weights (B, Q, M, L, P) ...
template <typename A>
struct GivenSamples {
  const A* locations;
  const A* attention;

  struct OfRow {
    const A *locations, *attention;
    __device__ __forceinline__ Sample<A> at(int sample, const Level& level) const {
      return {read_once(locations + 2 * sample) * level.width,
              read_once(locations + 2 * sample + 1) * level.height, read_once(attention + sample)};
    }
    // From gradients of pixels and of the attention weights to those of what was given.
    __device__ static __forceinline__ A of_x(A gradient, const Level& level) {
      return gradient * level.width;
    }
    __device__ static __forceinline__ A of_y(A gradient, const Level& level) {
      return gradient * level.height;
    }
    __device__ __forceinline__ void finish(A*, int, int, int) const {}
  };
  __device__ __forceinline__ OfRow of_row(int64_t index, uint32_t, int n, int, int) const {
    return {locations + index * 2 * n, attention + index * n};
  }
};

// ... or offsets, in pixels, from reference points (Q, 2) in [0, 1], and logits, whose softmax over the
// row is taken here.
template <typename A>
struct ProjectedSamples {
  const A* offsets;
  const A* logits;
  const A* reference;

  struct OfRow {
    const A *offsets, *logits;
    A x, y, largest, factor;
    __device__ __forceinline__ A attention(int sample) const {
      return exp(logits[sample] - largest) * factor;
    }
    __device__ __forceinline__ Sample<A> at(int sample, const Level& level) const {
      return {x * level.width + read_once(offsets + 2 * sample),
              y * level.height + read_once(offsets + 2 * sample + 1), attention(sample)};
    }
    __device__ static __forceinline__ A of_x(A gradient, const Level&) { return gradient; }
    __device__ static __forceinline__ A of_y(A gradient, const Level&) { return gradient; }
    // Of the softmax: w * (g - the sum of w * g).
    __device__ __forceinline__ void finish(A* gradients, int n, int lane, int lanes) const {
      A sum = 0;
      for (int s = lane; s < n; s += lanes) sum += attention(s) * gradients[s];
      sum = sum_of_lanes(sum, lanes);
      for (int s = lane; s < n; s += lanes) gradients[s] = attention(s) * (gradients[s] - sum);
    }
  };
  __device__ __forceinline__ OfRow of_row(int64_t index, uint32_t query, int n, int lane,
                                          int lanes) const {
    OfRow row{offsets + index * 2 * n, logits + index * n, reference[2 * query],
              reference[2 * query + 1], -static_cast<A>(INFINITY), 0};
    for (int s = lane; s < n; s += lanes) {
      row.largest = row.logits[s] > row.largest ? row.logits[s] : row.largest;
    }
    row.largest = largest_of_lanes(row.largest, lanes);
    A sum = 0;
    for (int s = lane; s < n; s += lanes) sum += exp(row.logits[s] - row.largest);
    row.factor = A(1) / sum_of_lanes(sum, lanes);
    return row;
  }
};

// ---- What both kernels begin with ---------------------------------------------------------------

// Numbers that are known when the kernel is compiled; 0 if they are not.
template <int Channels, int Levels, int Points>
struct Known {
  static constexpr int kChannels = Channels, kPoints = Points, kSamples = Levels * Points;
};

// V channels of a row belong to a lane.
template <typename Numbers, int V>
struct Counts {
  int channels, lanes, points, samples;
  __device__ __forceinline__ explicit Counts(const Walk& walk)
      : channels(Numbers::kChannels ? Numbers::kChannels : static_cast<int>(walk.sizes.D)),
        lanes(Numbers::kChannels ? Numbers::kChannels / V : walk.lanes),
        points(Numbers::kPoints ? Numbers::kPoints : static_cast<int>(walk.sizes.P)),
        samples(Numbers::kSamples ? Numbers::kSamples : static_cast<int>(walk.sizes.samples())) {}
};

// The samples of a row that a lane works out, one of every `lanes`: where it is known how many there
// are, they are all read at once, and waited for once.
template <typename A, int V, typename Numbers>
struct OwnSamples {
  static constexpr int kLanes = Numbers::kChannels / V;
  static constexpr int kRounds = kLanes ? (Numbers::kSamples + kLanes - 1) / kLanes : 0;
  Sample<A> samples[kRounds ? kRounds : 1];
  const int lane;

  template <typename OfRow>
  __device__ __forceinline__ OwnSamples(const Walk& walk, const Counts<Numbers, V>& count,
                                        const OfRow& of_row, int lane)
      : lane(lane) {
    MSDA_UNROLL for (int round = 0; round < kRounds; ++round) {
      const int sample = round * kLanes + lane;
      if (sample < count.samples) {
        samples[round] = of_row.at(sample, walk.level[sample / count.points]);
      }
    }
  }

  // The lane's among those from `first` on.
  template <typename OfRow>
  __device__ __forceinline__ Sample<A> at(int first, const OfRow& of_row, const Level& level) const {
    if constexpr (kRounds > 0) {
      return samples[first / kLanes];
    } else {
      return of_row.at(first + lane, level);
    }
  }
};

__device__ __forceinline__ int64_t first_value(const Sizes& sizes, const Row& row, int channel) {
  return (row.picture * sizes.S * sizes.M + row.head) * sizes.D + channel;
}

template <typename T>
__device__ __forceinline__ Pixels<T> pixels_from(const T* first, const Sizes& sizes) {
  // Hidden from the compiler, which would take the address apart again, for every pixel.
  asm volatile("" : "+l"(first));
  return {reinterpret_cast<const char*>(first), static_cast<uint32_t>(sizes.M * sizes.D * sizeof(T))};
}

// Two values at once: a bfloat16 is the upper half of a float.
template <int V>
__device__ __forceinline__ void convert(const Vector<c10::BFloat16, V>& from, float (&to)[V]) {
  if constexpr (V % 2 == 0) {
    uint32_t pairs[V / 2];
    memcpy(pairs, &from, sizeof(from));
    MSDA_UNROLL for (int c = 0; c < V; c += 2) {
      to[c] = __uint_as_float(pairs[c / 2] << 16);
      to[c + 1] = __uint_as_float(pairs[c / 2] & 0xffff0000u);
    }
  } else {
    MSDA_UNROLL for (int c = 0; c < V; ++c) to[c] = static_cast<float>(from.at[c]);
  }
}

// ---- Forward ------------------------------------------------------------------------------------

template <typename T, typename A, int V, typename Numbers, typename Samples>
__global__ void __launch_bounds__(kThreads, kBlocks)
    forward_kernel(const __grid_constant__ Walk walk, const T* __restrict__ values,
                   const Samples samples, T* __restrict__ out) {
  __shared__ SharedCorners<A, kThreads> shared;
  const Counts<Numbers, V> count(walk);
  const Sizes& sizes = walk.sizes;
  const int lane = threadIdx.x % count.lanes;
  for_rows(walk, count.lanes, [&](const Row& row) {
    const int64_t index = row.index(sizes);
    const auto of_row = samples.of_row(index, row.query, count.samples, lane, count.lanes);
    const OwnSamples<A, V, Numbers> own(walk, count, of_row, lane);
    for (int start = 0; start < count.channels; start += count.lanes * V) {
      const int channel = start + lane * V;
      const bool mine = row.valid && channel < count.channels;
      const Pixels<T> pixels =
          pixels_from(values + first_value(sizes, row, mine ? channel : 0), sizes);
      A sum[V] = {};
#pragma unroll
      for (int first = 0; first < count.samples; first += count.lanes) {
        if (first + lane < count.samples) {
          const Level& level = walk.level[(first + lane) / count.points];
          const Sample<A> sample = own.at(first, of_row, level);
          shared.put(shared.slot(lane, count.lanes),
                     weigh(locate(sample.x, sample.y, level), sample.attention));
        }
        __syncwarp();
        const int ready = min(count.lanes, count.samples - first);
#pragma unroll
        for (int s = 0; s < ready; ++s) {
          forward_sample(shared.get(shared.slot(s, count.lanes)), pixels, sum);
        }
        __syncwarp();
      }
      if (mine) {
        Vector<T, V> result;
        for (int c = 0; c < V; ++c) result.at[c] = static_cast<T>(sum[c]);
        *reinterpret_cast<Vector<T, V>*>(out + index * count.channels + channel) = result;
      }
    }
  });
}

// ---- Backward -----------------------------------------------------------------------------------

// Gradients of values are summed fast, by floating-point atomics, whose order and hence rounding
// differ from run to run ...
template <typename A>
struct FloatSums {
  A* sums;
  uint32_t stride;  // from pixel to pixel

  template <int V>
  __device__ __forceinline__ void add(int64_t first, uint32_t pixel,
                                      const Vector<A, V>& grad) const {
    A* const to = sums + first + static_cast<uint64_t>(pixel) * stride;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    constexpr int kAtOnce = sizeof(A) == 4 && V % 4 == 0 ? 4 : 1;
#else
    constexpr int kAtOnce = 1;
#endif
    for (int c = 0; c < V; c += kAtOnce) {
      if constexpr (kAtOnce == 4) {
        atomicAdd(reinterpret_cast<float4*>(to + c),
                  make_float4(grad.at[c], grad.at[c + 1], grad.at[c + 2], grad.at[c + 3]));
      } else {
        atomicAdd(to + c, grad.at[c]);
      }
    }
  }
};

// ... or as integers of 1 / scale, whose sum is the same in any order. The scale leaves room for
// as many terms as there are samples; a term is at most the largest gradient of the output, as no
// bilinear weight exceeds 1, times its attention weight.
template <typename A>
struct IntegerSums {
  unsigned long long* sums;
  uint32_t stride;   // from pixel to pixel
  const A* largest;  // of |grad_output| * |attention|, on the device
  int bits;

  template <int V>
  __device__ __forceinline__ void add(int64_t first, uint32_t pixel,
                                      const Vector<A, V>& grad) const {
    unsigned long long* const to = sums + first + static_cast<uint64_t>(pixel) * stride;
    const A limit = *largest;
    const double scale = limit > 0 ? ldexp(1.0, bits) / static_cast<double>(limit) : 0.0;
    for (int c = 0; c < V; ++c) {
      const long long term = __double2ll_rn(static_cast<double>(grad.at[c]) * scale);
      atomicAdd(to + c, static_cast<unsigned long long>(term));
    }
  }
};

// A lane writes the gradients of the samples that it works out: nothing is summed by atomics but
// the gradients of values.
template <typename T, typename A, int V, typename Numbers, typename Samples, typename Sums>
__global__ void __launch_bounds__(kThreads, 1)
    backward_kernel(const __grid_constant__ Walk walk, const T* __restrict__ values,
                    const Samples samples, const T* __restrict__ grad_out, const Sums sums,
                    A* __restrict__ grad_locations, A* __restrict__ grad_attention) {
  __shared__ SharedCorners<A, kThreads> shared;
  const Counts<Numbers, V> count(walk);
  const Sizes& sizes = walk.sizes;
  const int lane = threadIdx.x % count.lanes;
  for_rows(walk, count.lanes, [&](const Row& row) {
    const int64_t index = row.index(sizes);
    const auto of_row = samples.of_row(index, row.query, count.samples, lane, count.lanes);
    A* const to_locations = grad_locations + index * 2 * count.samples;
    A* const to_attention = grad_attention + index * count.samples;
    for (int start = 0; start < count.channels; start += count.lanes * V) {
      const int channel = start + lane * V;
      const bool mine = row.valid && channel < count.channels;
      const int64_t from = first_value(sizes, row, mine ? channel : 0);
      const Pixels<T> pixels = pixels_from(values + from, sizes);
      A grad[V] = {};
      if (mine) {
        const auto loaded =
            *reinterpret_cast<const Vector<T, V>*>(grad_out + index * count.channels + channel);
        for (int c = 0; c < V; ++c) grad[c] = static_cast<A>(loaded.at[c]);
      }
      for (int first = 0; first < count.samples; first += count.lanes) {
        const int own = first + lane;
        const Level& level = walk.level[min(own, count.samples - 1) / count.points];
        Sample<A> sample{};
        Place<A> place;
        if (own < count.samples) {
          sample = of_row.at(own, level);
          if (!row.valid) sample.attention = 0;  // nothing is added
          place = locate(sample.x, sample.y, level);
          shared.put(shared.slot(lane, count.lanes), weigh(place, sample.attention));
        }
        __syncwarp();
        A own_products[4] = {};
        const int ready = min(count.lanes, count.samples - first);
#pragma unroll 4
        for (int s = 0; s < ready; ++s) {
          A products[4] = {};
          backward_sample(shared.get(shared.slot(s, count.lanes)), pixels, grad, products,
                          [&](uint32_t pixel, const Vector<A, V>& to_value) {
                            sums.add(from, pixel, to_value);
                          });
          MSDA_UNROLL for (int corner = 0; corner < 4; ++corner) {
            products[corner] = sum_of_lanes(products[corner], count.lanes);
            own_products[corner] = lane == s ? products[corner] : own_products[corner];
          }
        }
        __syncwarp();
        if (row.valid && own < count.samples) {
          const bool more = start > 0;  // channels than the lanes of the row hold at once
          const auto part = gradient(place, sample.attention, own_products);
          const A of_x = of_row.of_x(part.x, level), of_y = of_row.of_y(part.y, level);
          to_attention[own] = part.attention + (more ? to_attention[own] : A(0));
          to_locations[2 * own] = of_x + (more ? to_locations[2 * own] : A(0));
          to_locations[2 * own + 1] = of_y + (more ? to_locations[2 * own + 1] : A(0));
        }
      }
    }
    of_row.finish(to_attention, row.valid ? count.samples : 0, lane, count.lanes);
  });
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
