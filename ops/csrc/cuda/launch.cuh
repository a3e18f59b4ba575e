// Which kernel it is to be, its way through the rows, and how it is launched.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <vector>

#include "../checks.h"
#include "backward.cuh"
#include "forward.cuh"

namespace msda {

inline cudaStream_t current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

inline void check(cudaError_t error) {
  STD_TORCH_CHECK(error == cudaSuccess, "ms_deform_attn: ", cudaGetErrorString(error));
}

// Channels of a lane: what one load holds; of float32, where everything is known, two loads.
template <typename T>
constexpr int kWide = 16 / sizeof(T);
template <typename T>
constexpr int kWideKnown = sizeof(T) == 4 ? 8 : kWide<T>;

// f(V, Known) for the pixel decoder's 32 channels of a head, 3 levels and 4 points, `WideKnown` of the
// channels to a lane, else for any, `Wide` to a lane; 1 where channels or addresses do not allow that.
template <int Wide, int WideKnown, typename F>
void dispatch_sizes(const Sizes& sizes, std::initializer_list<const void*> addresses, const F& f) {
  bool aligned = sizes.D % Wide == 0;
  for (const void* address : addresses) {
    aligned = aligned && reinterpret_cast<uintptr_t>(address) % 16 == 0;
  }
  if (aligned && sizes.D == 32 && sizes.L == 3 && sizes.P == 4) {
    f(std::integral_constant<int, WideKnown>(), Known<32, 3, 4>());
  } else if (aligned) {
    f(std::integral_constant<int, Wide>(), Known<0, 0, 0>());
  } else {
    f(std::integral_constant<int, 1>(), Known<0, 0, 0>());
  }
}

inline int lanes_of_row(const Sizes& sizes, int at_once) {
  int lanes = 1;
  while (lanes < kWarp && lanes * at_once < sizes.D) lanes *= 2;
  return lanes;
}

// bytes: of a value; at_once: values that a lane loads at once.
inline Walk plan(const Sizes& sizes, const std::vector<int64_t>& shapes, int64_t bytes, int at_once) {
  STD_TORCH_CHECK(sizes.L <= kMaxLevels, "ms_deform_attn: there are ", sizes.L,
                  " levels, on CUDA at most ", kMaxLevels);
  Walk walk{};
  walk.sizes = sizes;
  walk.tiled = sizes.Q == sizes.S;
  int64_t pixels = 0, tiles = 0;
  for (int64_t i = 0; i < sizes.L; ++i) {
    const int64_t height = shapes[2 * i], width = shapes[2 * i + 1];
    walk.level[i] = {static_cast<int>(height), static_cast<int>(width),
                     static_cast<uint32_t>(pixels)};
    const int64_t across = (width + kTile - 1) / kTile;
    const int64_t down = (height + kTile - 1) / kTile;
    walk.tiles_across[i] = Divisor(static_cast<uint32_t>(across));
    walk.tiles[i] = static_cast<uint32_t>(across * down);
    pixels += height * width;
    tiles += across * down;
  }
  walk.positions = walk.tiled ? tiles * kTilePixels : sizes.Q;
  walk.lanes = lanes_of_row(sizes, at_once);
  int64_t heads = std::clamp<int64_t>(kLine / (sizes.D * bytes), 1, sizes.M);
  while (sizes.M % heads) --heads;
  walk.heads = Divisor(static_cast<uint32_t>(heads));
  walk.slices = sizes.B * (sizes.M / heads);
  STD_TORCH_CHECK(walk.rows_of_slice() < int64_t(1) << 31 && sizes.M * sizes.D < int64_t(1) << 28,
                  "ms_deform_attn: ", sizes.Q, " queries, ", sizes.M, " heads of ", sizes.D,
                  " channels are too many on CUDA");
  return walk;
}

inline Chains plan_chains(const Walk& walk) {
  const Sizes& sizes = walk.sizes;
  Chains chains{};
  int64_t count = 0;
  for (int64_t i = 0; i < sizes.L; ++i) {
    const int64_t cells = Cell::count(walk.level[i]);
    const int64_t of_cell = std::max<int64_t>(sizes.Q * sizes.P / cells / kSamplesOfChain, 1);
    chains.first[i] = static_cast<uint32_t>(count);
    chains.of_cell[i] = static_cast<uint32_t>(of_cell);
    count += cells * of_cell;
  }
  STD_TORCH_CHECK(count < int64_t(1) << 31 && sizes.Q * sizes.samples() < kEnd,
                  "ms_deform_attn: ", sizes.Q, " queries of ", sizes.samples(),
                  " samples are too many on CUDA, where gradients are asked for");
  chains.count = static_cast<uint32_t>(count);
  return chains;
}

// How many blocks of a kernel run at once on the current device, which is made ready for it.
template <auto kKernel, int kThreads>
int blocks_at_once(int device) {
  int multiprocessors = 0, blocks = 0;
  check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device));
  cudaFuncAttributes attributes;
  check(cudaFuncGetAttributes(&attributes, kKernel));
  // The rest of the multiprocessor's memory is its cache.
  const int kilobytes = static_cast<int>(attributes.sharedSizeBytes / 1024 + 1) * kBlocks;
  check(cudaFuncSetAttribute(kKernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                             std::min(100 * kilobytes / 228 + 1, 100)));
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kKernel, kThreads, 0));
  return multiprocessors * std::max(blocks, 1);
}

// Each block goes through many rows.
template <auto kKernel, int kThreads, typename... Arguments>
void launch(const Walk& walk, cudaStream_t stream, const Arguments&... arguments) {
  constexpr int kDevices = 64;
  static std::array<std::atomic<int>, kDevices> known{};  // 0 where it is not
  int device = 0;
  check(cudaGetDevice(&device));
  int at_once = device < kDevices ? known[device].load() : 0;
  if (at_once == 0) {
    at_once = blocks_at_once<kKernel, kThreads>(device);
    if (device < kDevices) known[device].store(at_once);
  }
  const int64_t threads = walk.slices * walk.rows_of_slice() * walk.lanes;
  const int64_t needed = (threads + kThreads - 1) / kThreads;
  const auto grid = static_cast<unsigned int>(std::min<int64_t>(needed, at_once));
  kKernel<<<grid, kThreads, 0, stream>>>(walk, arguments...);
  check(cudaGetLastError());
}

}  // namespace msda
