// The CUDA implementations of mask2former::ms_deform_attn, its fused form and their gradients, on
// LibTorch's stable ABI. Letters as in sample.cuh.
//
// Nothing waits for the device and nothing is allocated but through PyTorch: the operators can be
// captured in a CUDA graph.
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <optional>
#include <tuple>
#include <vector>

#include "../checks.h"
#include "backward.cuh"
#include "forward.cuh"

namespace {

using msda::Sizes;
using msda::Walk;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// ---- Which kernel, and how it is launched -------------------------------------------------------

cudaStream_t current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

void check(cudaError_t error) {
  STD_TORCH_CHECK(error == cudaSuccess, "ms_deform_attn: ", cudaGetErrorString(error));
}

// f(T(), A()) for the type T of the values and the type A that they are computed in.
template <typename F>
void dispatch_type(ScalarType type, const F& f) {
  switch (type) {
    case ScalarType::Float:
      return f(float(), float());
    case ScalarType::Double:
      return f(double(), double());
    case ScalarType::BFloat16:
      return f(c10::BFloat16(), float());
    case ScalarType::Half:
      return f(c10::Half(), float());
    default:
      STD_TORCH_CHECK(false, "ms_deform_attn: value must be float32, float64, bfloat16 or float16");
  }
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
    f(std::integral_constant<int, WideKnown>(), msda::Known<32, 3, 4>());
  } else if (aligned) {
    f(std::integral_constant<int, Wide>(), msda::Known<0, 0, 0>());
  } else {
    f(std::integral_constant<int, 1>(), msda::Known<0, 0, 0>());
  }
}

int lanes_of_row(const Sizes& sizes, int at_once) {
  int lanes = 1;
  while (lanes < msda::kWarp && lanes * at_once < sizes.D) lanes *= 2;
  return lanes;
}

// bytes: of a value; at_once: values that a lane loads at once.
Walk plan(const Sizes& sizes, const std::vector<int64_t>& shapes, int64_t bytes, int at_once) {
  STD_TORCH_CHECK(sizes.L <= msda::kMaxLevels, "ms_deform_attn: there are ", sizes.L,
                  " levels, on CUDA at most ", msda::kMaxLevels);
  Walk walk{};
  walk.sizes = sizes;
  walk.tiled = sizes.Q == sizes.S;
  int64_t pixels = 0, tiles = 0;
  for (int64_t i = 0; i < sizes.L; ++i) {
    const int64_t height = shapes[2 * i], width = shapes[2 * i + 1];
    walk.level[i] = {static_cast<int>(height), static_cast<int>(width),
                     static_cast<uint32_t>(pixels)};
    const int64_t across = (width + msda::kTile - 1) / msda::kTile;
    const int64_t down = (height + msda::kTile - 1) / msda::kTile;
    walk.tiles_across[i] = msda::Divisor(static_cast<uint32_t>(std::max<int64_t>(across, 1)));
    walk.tiles[i] = static_cast<uint32_t>(across * down);
    pixels += height * width;
    tiles += across * down;
  }
  walk.positions = walk.tiled ? tiles * msda::kTilePixels : sizes.Q;
  walk.lanes = lanes_of_row(sizes, at_once);
  int64_t heads = std::clamp<int64_t>(msda::kLine / (sizes.D * bytes), 1, sizes.M);
  while (sizes.M % heads) --heads;
  walk.heads = msda::Divisor(static_cast<uint32_t>(heads));
  walk.slices = sizes.B * (sizes.M / heads);
  STD_TORCH_CHECK(walk.rows_of_slice() < int64_t(1) << 31 && sizes.M * sizes.D < int64_t(1) << 28,
                  "ms_deform_attn: ", sizes.Q, " queries, ", sizes.M, " heads of ", sizes.D,
                  " channels are too many on CUDA");
  return walk;
}

msda::Chains plan_chains(const Walk& walk) {
  const Sizes& sizes = walk.sizes;
  msda::Chains chains{};
  int64_t count = 0;
  for (int64_t i = 0; i < sizes.L; ++i) {
    const int64_t cells = msda::Cell::count(walk.level[i]);
    const int64_t of_cell = std::max<int64_t>(sizes.Q * sizes.P / cells / msda::kSamplesOfChain, 1);
    chains.first[i] = static_cast<uint32_t>(count);
    chains.of_cell[i] = static_cast<uint32_t>(of_cell);
    count += cells * of_cell;
  }
  STD_TORCH_CHECK(count < int64_t(1) << 31 && sizes.Q * sizes.samples() < msda::kEnd,
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
  const int kilobytes = static_cast<int>(attributes.sharedSizeBytes / 1024 + 1) * msda::kBlocks;
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

// ---- Forward ------------------------------------------------------------------------------------

// `reference_points` may be null: then locations and weights are given, else offsets and logits.
Tensor run_forward(const Tensor& value, const std::vector<int64_t>& spatial_shapes,
                   const Tensor* reference_points, const Tensor& sampling_locations,
                   const Tensor& attention_weights) {
  const Sizes sizes =
      msda::check_inputs(value, spatial_shapes, sampling_locations, attention_weights);
  if (reference_points) msda::check_reference(*reference_points, sampling_locations);
  const torch::stable::accelerator::DeviceGuard guard(value.get_device_index());
  const Tensor v = torch::stable::contiguous(value);
  const Tensor locations = torch::stable::contiguous(sampling_locations);
  const Tensor attention = torch::stable::contiguous(attention_weights);
  const Tensor reference =
      torch::stable::contiguous(reference_points ? *reference_points : attention_weights);
  Tensor out = torch::stable::new_empty(value, {sizes.B, sizes.Q, sizes.M * sizes.D});
  if (sizes.B * sizes.Q * sizes.M * sizes.D == 0) return out;
  dispatch_type(value.scalar_type(), [&](auto t, auto a) {
    using T = decltype(t);
    using A = decltype(a);
    const T* values = static_cast<const T*>(v.const_data_ptr());
    const A* places = static_cast<const A*>(locations.const_data_ptr());
    const A* weights = static_cast<const A*>(attention.const_data_ptr());
    const A* points = static_cast<const A*>(reference.const_data_ptr());
    T* to = static_cast<T*>(out.mutable_data_ptr());
    dispatch_sizes<kWide<T>, kWideKnown<T>>(sizes, {values, to}, [&](auto width, auto numbers) {
      constexpr int V = decltype(width)::value;
      const Walk walk = plan(sizes, spatial_shapes, sizeof(T), V);
      const auto run = [&](auto samples) {
        launch<msda::forward_kernel<T, A, V, decltype(numbers), decltype(samples)>,
               msda::kForwardThreads>(walk, current_stream(value), values, samples, to);
      };
      if (reference_points) {
        run(msda::ProjectedSamples<A>{places, weights, points});
      } else {
        run(msda::GivenSamples<A>{places, weights});
      }
    });
  });
  return out;
}

Tensor ms_deform_attn(const Tensor& value, const std::vector<int64_t> spatial_shapes,
                      const Tensor& sampling_locations, const Tensor& attention_weights) {
  return run_forward(value, spatial_shapes, nullptr, sampling_locations, attention_weights);
}

Tensor ms_deform_attn_fused(const Tensor& value, const std::vector<int64_t> spatial_shapes,
                            const Tensor& reference_points, const Tensor& sampling_offsets,
                            const Tensor& attention_logits) {
  return run_forward(value, spatial_shapes, &reference_points, sampling_offsets, attention_logits);
}

// ---- Backward -----------------------------------------------------------------------------------

using Gradients = std::tuple<Tensor, Tensor, Tensor>;

// The memory of the chains.
template <typename A>
struct Chained {
  msda::Chains chains;
  Tensor newest_of_chains, links_of_samples;
  uint32_t* newest;
  msda::Link<A>* links;

  Chained(const Tensor& like, const Walk& walk, cudaStream_t stream)
      : chains(plan_chains(walk)),
        newest_of_chains(bytes(like, slices(walk.sizes) * chains.count * sizeof(uint32_t))),
        links_of_samples(bytes(like, slices(walk.sizes) * walk.sizes.Q * walk.sizes.samples() *
                                         sizeof(msda::Link<A>))),
        newest(static_cast<uint32_t*>(newest_of_chains.mutable_data_ptr())),
        links(static_cast<msda::Link<A>*>(links_of_samples.mutable_data_ptr())) {
    static_assert(msda::kEnd == ~0u, "every byte of it is 255");
    check(cudaMemsetAsync(newest, 255, newest_of_chains.numel(), stream));
  }
  static int64_t slices(const Sizes& sizes) { return sizes.B * sizes.M; }
  static Tensor bytes(const Tensor& like, int64_t count) {
    return torch::stable::new_empty(like, {count}, std::make_optional(ScalarType::Byte));
  }
};

// Gradients of values, summed in memory as `sums` says.
template <typename T, typename A, typename Sums>
void sum_chains(const Walk& walk, const T* grad_out, const Chained<A>& chained, const Sums& sums,
                cudaStream_t stream) {
  const Sizes& sizes = walk.sizes;
  // As many channels as an atomic has: with more, neighbours would not write to neighbours.
  dispatch_sizes<kWide<A>, kWide<A>>(sizes, {grad_out}, [&](auto width, auto numbers) {
    constexpr int V = decltype(width)::value;
    Walk of_chains = walk;
    of_chains.lanes = lanes_of_row(sizes, V);
    const int64_t threads = sizes.B * sizes.M * chained.chains.count * of_chains.lanes;
    const int64_t blocks = (threads + msda::kChainThreads - 1) / msda::kChainThreads;
    STD_TORCH_CHECK(blocks < int64_t(1) << 31, "ms_deform_attn: ", sizes.B, " pictures of ", sizes.Q,
                    " queries are too many on CUDA, where gradients are asked for");
    msda::value_gradients_kernel<T, A, V, decltype(numbers)>
        <<<static_cast<unsigned int>(blocks), msda::kChainThreads, 0, stream>>>(
            of_chains, chained.chains, grad_out, chained.newest, chained.links, sums);
    check(cudaGetLastError());
  });
}

// Of values, by atomics of integers, whose unit depends on the largest gradient of the output and,
// where they are given, the largest attention weight.
template <typename T, typename A, typename Run>
void sum_integers(const Sizes& sizes, const T* grad_out, const A* given_attention,
                  const Tensor& like, Tensor& result, cudaStream_t stream, const Run& run) {
  constexpr unsigned int kThreads = 256, kMost = 1024;
  Tensor sums = torch::stable::new_zeros(like, like.sizes(), std::make_optional(ScalarType::Long));
  Tensor largest = torch::stable::new_zeros(like, {2}, std::make_optional(ScalarType::Int));
  Tensor product = torch::stable::new_empty(like, {1}, std::make_optional(ScalarType::Double));
  auto* sizes_of = static_cast<unsigned int*>(largest.mutable_data_ptr());
  A* limit = static_cast<A*>(product.mutable_data_ptr());
  const auto blocks = [&](int64_t count) {
    return static_cast<unsigned int>(std::min<int64_t>((count + kThreads - 1) / kThreads, kMost));
  };
  // A pixel's channel gets at most Q * L * P terms.
  const int bits =
      62 - static_cast<int>(std::ceil(std::log2(double(sizes.Q) * sizes.samples() + 1)));
  const int64_t outputs = sizes.B * sizes.Q * sizes.M * sizes.D;
  const int64_t samples = sizes.B * sizes.Q * sizes.M * sizes.samples();
  const int64_t count = sizes.B * sizes.S * sizes.M * sizes.D;
  msda::largest_kernel<<<blocks(outputs), kThreads, 0, stream>>>(grad_out, outputs, sizes_of);
  if (given_attention) {
    msda::largest_kernel<<<blocks(samples), kThreads, 0, stream>>>(given_attention, samples,
                                                                   sizes_of + 1);
  }
  msda::multiply_kernel<<<1, 1, 0, stream>>>(sizes_of, given_attention != nullptr, limit);
  run(msda::IntegerSums<A>{static_cast<unsigned long long*>(sums.mutable_data_ptr()), limit, bits});
  msda::from_integers_kernel<<<blocks(count), kThreads, 0, stream>>>(
      static_cast<const long long*>(sums.const_data_ptr()), limit, bits, count,
      static_cast<T*>(result.mutable_data_ptr()));
  check(cudaGetLastError());
}

// `reference_points` as in run_forward; the gradients are those of what is given.
Gradients run_backward(const Tensor& grad_output, const Tensor& value,
                       const std::vector<int64_t>& spatial_shapes, const Tensor* reference_points,
                       const Tensor& sampling_locations, const Tensor& attention_weights,
                       bool deterministic) {
  const Sizes sizes =
      msda::check_inputs(value, spatial_shapes, sampling_locations, attention_weights);
  if (reference_points) msda::check_reference(*reference_points, sampling_locations);
  msda::check_gradient(grad_output, value, sizes);
  const torch::stable::accelerator::DeviceGuard guard(value.get_device_index());
  const cudaStream_t stream = current_stream(value);
  const Tensor grad = torch::stable::contiguous(grad_output);
  const Tensor v = torch::stable::contiguous(value);
  const Tensor locations = torch::stable::contiguous(sampling_locations);
  const Tensor attention = torch::stable::contiguous(attention_weights);
  const Tensor reference =
      torch::stable::contiguous(reference_points ? *reference_points : attention_weights);
  if (sizes.B * sizes.Q * sizes.M * sizes.D == 0) {
    const auto zeros = [](const Tensor& x) { return torch::stable::new_zeros(x, x.sizes()); };
    return {zeros(value), zeros(sampling_locations), zeros(attention_weights)};
  }
  const ScalarType computed = sampling_locations.scalar_type();
  Tensor grad_locations = torch::stable::new_empty(sampling_locations, sampling_locations.sizes());
  Tensor grad_attention = torch::stable::new_empty(attention_weights, attention_weights.sizes());
  Tensor grad_value =
      deterministic ? torch::stable::new_empty(value, value.sizes())
                    : torch::stable::new_zeros(value, value.sizes(), std::make_optional(computed));

  dispatch_type(value.scalar_type(), [&](auto t, auto a) {
    using T = decltype(t);
    using A = decltype(a);
    const T* values = static_cast<const T*>(v.const_data_ptr());
    const A* places = static_cast<const A*>(locations.const_data_ptr());
    const A* weights = static_cast<const A*>(attention.const_data_ptr());
    const A* points = static_cast<const A*>(reference.const_data_ptr());
    const T* from = static_cast<const T*>(grad.const_data_ptr());
    A* to_locations = static_cast<A*>(grad_locations.mutable_data_ptr());
    A* to_attention = static_cast<A*>(grad_attention.mutable_data_ptr());
    const Walk walk = plan(sizes, spatial_shapes, sizeof(T), 1);
    const Chained<A> chained(value, walk, stream);
    dispatch_sizes<kWide<T>, kWideKnown<T>>(sizes, {values, from}, [&](auto width, auto numbers) {
      constexpr int V = decltype(width)::value;
      const Walk rows = plan(sizes, spatial_shapes, sizeof(T), V);
      const auto run = [&](auto samples) {
        launch<msda::sample_gradients_kernel<T, A, V, decltype(numbers), decltype(samples)>,
               msda::kBackwardThreads>(rows, stream, chained.chains, values, samples, from,
                                       chained.newest, chained.links, to_locations, to_attention);
      };
      if (reference_points) {
        run(msda::ProjectedSamples<A>{places, weights, points});
      } else {
        run(msda::GivenSamples<A>{places, weights});
      }
    });
    const auto sum = [&](auto sums) {
      sum_chains<T, A>(walk, from, chained, sums, stream);
    };
    if (deterministic) {
      const A* given = reference_points ? nullptr : weights;
      sum_integers<T, A>(sizes, from, given, value, grad_value, stream, sum);
    } else {
      sum(msda::FloatSums<A>{static_cast<A*>(grad_value.mutable_data_ptr())});
    }
  });
  if (!deterministic && computed != value.scalar_type()) {
    Tensor rounded = torch::stable::new_empty(value, value.sizes());
    torch::stable::copy_(rounded, grad_value);
    return {rounded, grad_locations, grad_attention};
  }
  return {grad_value, grad_locations, grad_attention};
}

Gradients ms_deform_attn_backward(const Tensor& grad_output, const Tensor& value,
                                  const std::vector<int64_t> spatial_shapes,
                                  const Tensor& sampling_locations,
                                  const Tensor& attention_weights, bool deterministic) {
  return run_backward(grad_output, value, spatial_shapes, nullptr, sampling_locations,
                      attention_weights, deterministic);
}

Gradients ms_deform_attn_fused_backward(const Tensor& grad_output, const Tensor& value,
                                        const std::vector<int64_t> spatial_shapes,
                                        const Tensor& reference_points,
                                        const Tensor& sampling_offsets,
                                        const Tensor& attention_logits, bool deterministic) {
  return run_backward(grad_output, value, spatial_shapes, &reference_points, sampling_offsets,
                      attention_logits, deterministic);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mask2former, CUDA, m) {
  m.impl("ms_deform_attn", TORCH_BOX(&ms_deform_attn));
  m.impl("ms_deform_attn_fused", TORCH_BOX(&ms_deform_attn_fused));
  m.impl("ms_deform_attn_backward", TORCH_BOX(&ms_deform_attn_backward));
  m.impl("ms_deform_attn_fused_backward", TORCH_BOX(&ms_deform_attn_fused_backward));
}
