// The kernel of the forward pass.
#pragma once

#include "row_samples.cuh"

namespace msda {

// On an H100, of 128 to 768 threads and 512 to 1024 on a multiprocessor the fastest for offsets and
// logits, or within 2 % of it.
constexpr int kForwardThreads = 384;

template <typename T, typename A, int V, typename Numbers, typename Samples>
__global__ void __launch_bounds__(kForwardThreads, kBlocks)
    forward_kernel(const __grid_constant__ Walk walk, const T* __restrict__ values,
                   const Samples samples, T* __restrict__ out) {
  __shared__ Vector<uint32_t, 4> corners[kForwardThreads];
  __shared__ Vector<A, 4> weights[kForwardThreads];
  const Counts<Numbers, V> count(walk);
  const Sizes& sizes = walk.sizes;
  const int lane = threadIdx.x % count.lanes;
  for_rows(walk, count.lanes, [&](const Row& row) {
    const int64_t index = row.index(sizes);
    const auto of_row = samples.of_row(index, row.query, count.samples, lane, count.lanes);
    const OwnSamples<A, V, Numbers> own(walk, count, of_row, lane);
    for (int start = 0; start < count.channels; start += count.lanes * V) {
      const LaneChannels<T, V> channels(start, lane, count.lanes);
      const bool mine = row.valid && channels.first[0] < count.channels;
      const auto pixels = channels.of_pixels(values, sizes, row);
      A sum[V] = {};
#pragma unroll
      for (int first = 0; first < count.samples; first += count.lanes) {
        if (first + lane < count.samples) {
          const Level& level = walk.level[(first + lane) / count.points];
          const Sample<A> sample = own.at(first, of_row, level);
          const Corners<A> own_corners =
              weigh(locate(sample.x, sample.y, level), sample.attention);
          corners[slot(lane, count.lanes)] = own_corners.pixel;
          weights[slot(lane, count.lanes)] = own_corners.weight;
        }
        __syncwarp();
        const int ready = min(count.lanes, count.samples - first);
#pragma unroll
        for (int s = 0; s < ready; ++s) {
          const int at = slot(s, count.lanes);
          forward_sample(Corners<A>{corners[at], weights[at]}, pixels, sum);
        }
        __syncwarp();
      }
      if (mine) channels.store(sum, out + index * count.channels);
    }
  });
}

}  // namespace msda
