// Where the samples of a row come from, and what the kernels that go through them begin with.
#pragma once

#include <torch/headeronly/util/BFloat16.h>

#include "rows.cuh"

namespace msda {

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

// ---- What the kernels begin with ------------------------------------------------------------------

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

// The V channels of a lane, in pieces of at most 16 bytes. Of two pieces, one lies in each half of the
// row's channels, and neighbouring rows begin with different ones: other banks of the cache.
template <typename T, int V>
struct LaneChannels {
  static constexpr int kPieces = V * sizeof(T) > 16 ? V * sizeof(T) / 16 : 1;
  static constexpr int kPiece = V / kPieces;
  int first[kPieces];

  __device__ __forceinline__ LaneChannels(int start, int lane, int lanes) {
    const int row = threadIdx.x / lanes;
    MSDA_UNROLL for (int i = 0; i < kPieces; ++i) {
      first[i] = start + ((row + i) % kPieces * lanes + lane) * kPiece;
    }
  }
  template <typename A>
  __device__ __forceinline__ void load(const T* row, A (&to)[V]) const {
    Vector<T, V> loaded;
    MSDA_UNROLL for (int i = 0; i < kPieces; ++i) {
      reinterpret_cast<Vector<T, kPiece>*>(&loaded)[i] =
          *reinterpret_cast<const Vector<T, kPiece>*>(row + first[i]);
    }
    convert(loaded, to);
  }
  template <typename A>
  __device__ __forceinline__ void store(const A (&from)[V], T* row) const {
    MSDA_UNROLL for (int i = 0; i < kPieces; ++i) {
      Vector<T, kPiece> piece;
      MSDA_UNROLL for (int c = 0; c < kPiece; ++c) {
        piece.at[c] = static_cast<T>(from[i * kPiece + c]);
      }
      *reinterpret_cast<Vector<T, kPiece>*>(row + first[i]) = piece;
    }
  }
  // Of the row's head; those of a lane without channels are another lane's.
  __device__ __forceinline__ Pixels<T, kPieces> of_pixels(const T* values, const Sizes& sizes,
                                                          const Row& row) const {
    Pixels<T, kPieces> pixels;
    const bool any = first[0] < sizes.D;
    pixels.stride = static_cast<uint32_t>(sizes.M * sizes.D * sizeof(T));
    const T* const head = values + (row.picture * sizes.S * sizes.M + row.head) * sizes.D;
    MSDA_UNROLL for (int i = 0; i < kPieces; ++i) {
      pixels.first[i] = reinterpret_cast<const char*>(head + (any ? first[i] : 0));
      // Hidden from the compiler, which would take the address apart again, for every pixel.
      asm volatile("" : "+l"(pixels.first[i]));
    }
    return pixels;
  }
};

}  // namespace msda
