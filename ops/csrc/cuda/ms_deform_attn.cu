// The CUDA implementations of mask2former::ms_deform_attn and its backward, on LibTorch's stable ABI.
// Letters as in lane.cuh.
//
// Threads are lanes of V channels: the largest power of two that fits 16 bytes and divides D. The
// lanes of a row are neighbours, so that their loads of a pixel are one. Nothing waits for the device
// and nothing is allocated but through PyTorch: the operators can be captured in a CUDA graph.
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <tuple>
#include <vector>

#include "../checks.h"
#include "lane.cuh"

namespace {

using msda::Levels;
using msda::Sizes;
using msda::Vector;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int kThreads = 256;
constexpr int kWarp = 32;

// ---- Where gradients of values are summed -------------------------------------------------------

// Fast: floating-point atomics, whose order and hence rounding differ from run to run.
template <typename A>
struct FloatSums {
  A* sums;

  template <int V>
  __device__ __forceinline__ void add(int64_t index, const Vector<A, V>& grad) const {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    constexpr int kAtOnce = sizeof(A) == 4 && V % 4 == 0 ? 4 : 1;
#else
    constexpr int kAtOnce = 1;
#endif
    for (int c = 0; c < V; c += kAtOnce) {
      if constexpr (kAtOnce == 4) {
        atomicAdd(reinterpret_cast<float4*>(sums + index + c),
                  make_float4(grad.at[c], grad.at[c + 1], grad.at[c + 2], grad.at[c + 3]));
      } else {
        atomicAdd(sums + index + c, grad.at[c]);
      }
    }
  }
};

// Deterministic: integers of 1 / scale, whose sum is the same in any order. The scale leaves room for
// as many terms as there are samples; a term is at most the largest gradient of the output, as no
// bilinear weight exceeds 1, times its attention weight.
template <typename A>
struct IntegerSums {
  unsigned long long* sums;
  const A* largest;  // of |grad_output| * |attention|, on the device
  int bits;

  template <int V>
  __device__ __forceinline__ void add(int64_t index, const Vector<A, V>& grad) const {
    const A limit = *largest;
    const double scale = limit > 0 ? ldexp(1.0, bits) / static_cast<double>(limit) : 0.0;
    for (int c = 0; c < V; ++c) {
      const long long term = __double2ll_rn(static_cast<double>(grad.at[c]) * scale);
      atomicAdd(sums + index + c, static_cast<unsigned long long>(term));
    }
  }
};

// ---- Kernels ------------------------------------------------------------------------------------

template <typename T, typename A>
struct Arrays {
  const T* value;      // (B, S, M, D)
  const A* locations;  // (B, Q, M, L, P, 2)
  const A* attention;  // (B, Q, M, L, P)
};

// Of the lane `index` among B * Q * M * (D / V).
struct Position {
  int64_t row, value;  // index of the row; offset of the lane in the picture's first pixel
  int channel;         // the lane's first
};

template <int V>
__device__ __forceinline__ Position position_of(const Sizes& sizes, int64_t index) {
  const int64_t lanes = sizes.D / V;
  const int64_t row = index / lanes;
  const int channel = static_cast<int>(index - row * lanes) * V;
  const int64_t head = row % sizes.M, picture = row / (sizes.M * sizes.Q);
  return {row, (picture * sizes.S * sizes.M + head) * sizes.D + channel, channel};
}

// Samples: GivenSamples or ProjectedSamples.
template <typename T, typename A, int V, typename Samples>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(Sizes sizes, Levels levels, const T* values, Samples samples, T* out,
                   int64_t lanes) {
  const int64_t stride = sizes.M * sizes.D;
  for (int64_t index = blockIdx.x * int64_t(kThreads) + threadIdx.x; index < lanes;
       index += int64_t(gridDim.x) * kThreads) {
    const Position position = position_of<V>(sizes, index);
    const auto row = samples.row(sizes, position.row);
    int64_t sample = position.row * sizes.samples();
    A sum[V] = {};
    for (int level = 0; level < sizes.L; ++level) {
      const int height = levels.height[level], width = levels.width[level];
      const T* value = values + position.value + levels.first[level] * stride;
#pragma unroll 4
      for (int point = 0; point < sizes.P; ++point, ++sample) {
        const msda::Sample<A> at = row(sample);
        msda::Place<A> place;
        if (msda::locate(at.x, at.y, height, width, place)) {
          msda::forward_sample<T, A, V>(place, at.attention, value, stride, sum);
        }
      }
    }
    Vector<T, V> result;
    for (int c = 0; c < V; ++c) result.at[c] = static_cast<T>(sum[c]);
    *reinterpret_cast<Vector<T, V>*>(out + position.row * sizes.D + position.channel) = result;
  }
}

// The sum over the `lanes` neighbours (a power of two) that a lane is among.
template <typename A>
__device__ __forceinline__ A sum_of_lanes(A x, int lanes) {
  for (int offset = lanes / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(~0u, x, offset);
  return x;
}

// `group` lanes of a row sum their parts before they write; rows of more lanes than a warp, or of a
// number that is no power of two, use atomics (group 1) into arrays of zeros.
template <typename T, typename A, int V, typename Sums>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(Sizes sizes, Levels levels, Arrays<T, A> in, const T* grad_out, Sums sums,
                    A* grad_locations, A* grad_attention, int64_t lanes, int group) {
  const int64_t stride = sizes.M * sizes.D;
  // All threads of a warp make the same number of rounds: they exchange sums.
  const int64_t rounds = (lanes + kThreads - 1) / kThreads * kThreads;
  for (int64_t index = blockIdx.x * int64_t(kThreads) + threadIdx.x; index < rounds;
       index += int64_t(gridDim.x) * kThreads) {
    const bool active = index < lanes;
    const Position position = position_of<V>(sizes, active ? index : lanes - 1);
    A grad[V] = {};
    if (active) {
      const auto from = *reinterpret_cast<const Vector<T, V>*>(
          grad_out + position.row * sizes.D + position.channel);
      for (int c = 0; c < V; ++c) grad[c] = static_cast<A>(from.at[c]);
    }
    int64_t sample = position.row * sizes.samples();
    for (int level = 0; level < sizes.L; ++level) {
      const int height = levels.height[level], width = levels.width[level];
      const int64_t first = position.value + levels.first[level] * stride;
      for (int point = 0; point < sizes.P; ++point, ++sample) {
        msda::SampleGradient<A> part;
        msda::Place<A> place;
        if (active && msda::locate(in.locations[2 * sample], in.locations[2 * sample + 1], height,
                                   width, place)) {
          part = msda::backward_sample<T, A, V>(
              place, in.attention[sample], in.value + first, stride, grad,
              [&](int64_t pixel, const Vector<A, V>& to_value) {
                sums.add(first + pixel * stride, to_value);
              });
        }
        const A attention = sum_of_lanes(part.attention, group);
        const A x = sum_of_lanes(part.x, group) * width;
        const A y = sum_of_lanes(part.y, group) * height;
        if (!active) continue;
        if (group == sizes.D / V) {
          if (index % group == 0) {
            grad_attention[sample] = attention;
            grad_locations[2 * sample] = x;
            grad_locations[2 * sample + 1] = y;
          }
        } else if (index % group == 0) {
          atomicAdd(grad_attention + sample, attention);
          atomicAdd(grad_locations + 2 * sample, x);
          atomicAdd(grad_locations + 2 * sample + 1, y);
        }
      }
    }
  }
}

// The largest |grad| times the largest |attention|; `bits` holds the largest of each so far, as
// integers, which have the order of the non-negative numbers they stand for.
template <typename T>
__global__ void largest_kernel(const T* numbers, int64_t count, unsigned int* largest) {
  float mine = 0;
  for (int64_t i = blockIdx.x * int64_t(kThreads) + threadIdx.x; i < count;
       i += int64_t(gridDim.x) * kThreads) {
    const float size = fabsf(static_cast<float>(numbers[i]));
    mine = size <= mine ? mine : size;  // NaN stays
  }
  atomicMax(largest, __float_as_uint(mine));
}

template <typename A>
__global__ void multiply_kernel(const unsigned int* largest, A* product) {
  // A little more: the numbers may be doubles, rounded down.
  *product = static_cast<A>(__uint_as_float(largest[0])) *
             static_cast<A>(__uint_as_float(largest[1])) * static_cast<A>(1.0000005);
}

template <typename T, typename A>
__global__ void from_integers_kernel(const long long* sums, const A* largest, int bits,
                                     int64_t count, T* out) {
  const double unit = ldexp(static_cast<double>(*largest), -bits);  // NaN and infinity spread
  for (int64_t i = blockIdx.x * int64_t(kThreads) + threadIdx.x; i < count;
       i += int64_t(gridDim.x) * kThreads) {
    out[i] = static_cast<T>(static_cast<A>(static_cast<double>(sums[i]) * unit));
  }
}

// ---- Launches -----------------------------------------------------------------------------------

cudaStream_t current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

unsigned int blocks_for(int64_t threads) {
  return static_cast<unsigned int>(
      std::min<int64_t>((threads + kThreads - 1) / kThreads, int64_t(1) << 30));
}

void check_launch() {
  const cudaError_t error = cudaGetLastError();
  STD_TORCH_CHECK(error == cudaSuccess, "ms_deform_attn: ", cudaGetErrorString(error));
}

Levels levels_of(const Sizes& sizes, const std::vector<int64_t>& shapes) {
  STD_TORCH_CHECK(sizes.L <= msda::kMaxLevels, "ms_deform_attn: there are ", sizes.L,
                  " levels, on CUDA at most ", msda::kMaxLevels);
  Levels levels{};
  int64_t first = 0;
  for (int64_t level = 0; level < sizes.L; ++level) {
    levels.height[level] = static_cast<int>(shapes[2 * level]);
    levels.width[level] = static_cast<int>(shapes[2 * level + 1]);
    levels.first[level] = first;
    first += shapes[2 * level] * shapes[2 * level + 1];
  }
  return levels;
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

// f(V) for vectors of 16 bytes where the number of channels and the addresses allow it, else 1.
template <typename T, typename F>
void dispatch_vector(int64_t channels, std::initializer_list<const void*> addresses, const F& f) {
  constexpr int kWide = 16 / sizeof(T);
  bool aligned = channels % kWide == 0;
  for (const void* address : addresses) {
    aligned = aligned && reinterpret_cast<uintptr_t>(address) % 16 == 0;
  }
  if (aligned) {
    f(std::integral_constant<int, kWide>());
  } else {
    f(std::integral_constant<int, 1>());
  }
}

// `reference_points` may be null: then locations and weights are given, else offsets and logits.
Tensor run_forward(const Tensor& value, const std::vector<int64_t>& spatial_shapes,
                   const Tensor* reference_points, const Tensor& sampling_locations,
                   const Tensor& attention_weights) {
  const Sizes sizes =
      msda::check_inputs(value, spatial_shapes, sampling_locations, attention_weights);
  if (reference_points) msda::check_reference(*reference_points, sampling_locations);
  const Levels levels = levels_of(sizes, spatial_shapes);
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
    T* to = static_cast<T*>(out.mutable_data_ptr());
    dispatch_vector<T>(sizes.D, {values, to}, [&](auto width) {
      constexpr int V = decltype(width)::value;
      const int64_t lanes = sizes.B * sizes.Q * sizes.M * (sizes.D / V);
      const auto launch = [&](auto samples) {
        forward_kernel<T, A, V><<<blocks_for(lanes), kThreads, 0, current_stream(value)>>>(
            sizes, levels, values, samples, to, lanes);
      };
      if (reference_points) {
        const A* points = static_cast<const A*>(reference.const_data_ptr());
        launch(msda::ProjectedSamples<A>{places, weights, points});
      } else {
        launch(msda::GivenSamples<A>{places, weights});
      }
    });
  });
  check_launch();
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

// Leaves out the contributions of more than one lane to a sum only where they are all in one warp.
int group_of(int64_t lanes_of_row) {
  const bool power_of_two = (lanes_of_row & (lanes_of_row - 1)) == 0;
  return power_of_two && lanes_of_row <= kWarp ? static_cast<int>(lanes_of_row) : 1;
}

std::tuple<Tensor, Tensor, Tensor> ms_deform_attn_backward(
    const Tensor& grad_output, const Tensor& value, const std::vector<int64_t> spatial_shapes,
    const Tensor& sampling_locations, const Tensor& attention_weights, bool deterministic) {
  const Sizes sizes =
      msda::check_inputs(value, spatial_shapes, sampling_locations, attention_weights);
  msda::check_shape("grad_output", grad_output, {sizes.B, sizes.Q, sizes.M * sizes.D});
  STD_TORCH_CHECK(grad_output.scalar_type() == value.scalar_type() &&
                      grad_output.get_device_index() == value.get_device_index() &&
                      grad_output.is_cuda(),
                  "ms_deform_attn: grad_output must have the type and device of value");
  const Levels levels = levels_of(sizes, spatial_shapes);
  const torch::stable::accelerator::DeviceGuard guard(value.get_device_index());
  const cudaStream_t stream = current_stream(value);
  const Tensor grad = torch::stable::contiguous(grad_output);
  const Tensor v = torch::stable::contiguous(value);
  const Tensor locations = torch::stable::contiguous(sampling_locations);
  const Tensor attention = torch::stable::contiguous(attention_weights);
  const ScalarType computed = sampling_locations.scalar_type();
  // Zeros: rows whose lanes are no single group are summed by atomics, and so are the values.
  Tensor grad_locations = torch::stable::new_zeros(sampling_locations, sampling_locations.sizes());
  Tensor grad_attention = torch::stable::new_zeros(attention_weights, attention_weights.sizes());
  const int64_t count = sizes.B * sizes.S * sizes.M * sizes.D;
  if (sizes.B * sizes.Q * sizes.M * sizes.D == 0) {
    return {torch::stable::new_zeros(value, value.sizes()), grad_locations, grad_attention};
  }
  Tensor sums = torch::stable::new_zeros(
      value, value.sizes(), std::make_optional(deterministic ? ScalarType::Long : computed));
  Tensor result = deterministic || computed != value.scalar_type()
                      ? torch::stable::new_empty(value, value.sizes())
                      : sums;
  Tensor largest =
      torch::stable::new_zeros(value, {2}, std::make_optional(ScalarType::Int));
  Tensor product = torch::stable::new_zeros(value, {1}, std::make_optional(computed));
  // A pixel's channel gets at most Q * L * P terms.
  const int bits =
      62 - static_cast<int>(std::ceil(std::log2(double(sizes.Q) * sizes.samples() + 1)));

  dispatch_type(value.scalar_type(), [&](auto t, auto a) {
    using T = decltype(t);
    using A = decltype(a);
    const Arrays<T, A> in{static_cast<const T*>(v.const_data_ptr()),
                          static_cast<const A*>(locations.const_data_ptr()),
                          static_cast<const A*>(attention.const_data_ptr())};
    const T* from = static_cast<const T*>(grad.const_data_ptr());
    A* to_locations = static_cast<A*>(grad_locations.mutable_data_ptr());
    A* to_attention = static_cast<A*>(grad_attention.mutable_data_ptr());
    A* limit = static_cast<A*>(product.mutable_data_ptr());
    dispatch_vector<T>(sizes.D, {in.value, from}, [&](auto width) {
      constexpr int V = decltype(width)::value;
      const int64_t lanes = sizes.B * sizes.Q * sizes.M * (sizes.D / V);
      const int group = group_of(sizes.D / V);
      STD_TORCH_CHECK(!deterministic || group == sizes.D / V,
                      "ms_deform_attn: ", sizes.D, " channels of a head have no deterministic "
                      "gradient on CUDA; use a power of two, at most 256");
      const auto launch = [&](auto to_value) {
        backward_kernel<T, A, V><<<blocks_for(lanes), kThreads, 0, stream>>>(
            sizes, levels, in, from, to_value, to_locations, to_attention, lanes, group);
      };
      if (deterministic) {
        auto* sizes_of = static_cast<unsigned int*>(largest.mutable_data_ptr());
        const int64_t outputs = sizes.B * sizes.Q * sizes.M * sizes.D;
        const int64_t samples = sizes.B * sizes.Q * sizes.M * sizes.samples();
        const unsigned int most = 1024;
        largest_kernel<<<std::min(blocks_for(outputs), most), kThreads, 0, stream>>>(
            from, outputs, sizes_of);
        largest_kernel<<<std::min(blocks_for(samples), most), kThreads, 0, stream>>>(
            in.attention, samples, sizes_of + 1);
        multiply_kernel<<<1, 1, 0, stream>>>(sizes_of, limit);
        launch(IntegerSums<A>{static_cast<unsigned long long*>(sums.mutable_data_ptr()), limit,
                              bits});
        from_integers_kernel<<<std::min(blocks_for(count), most * 16), kThreads, 0, stream>>>(
            static_cast<const long long*>(sums.const_data_ptr()), limit, bits, count,
            static_cast<T*>(result.mutable_data_ptr()));
      } else {
        launch(FloatSums<A>{static_cast<A*>(sums.mutable_data_ptr())});
      }
    });
  });
  check_launch();
  if (!deterministic && computed != value.scalar_type()) torch::stable::copy_(result, sums);
  return {result, grad_locations, grad_attention};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mask2former, CUDA, m) {
  m.impl("ms_deform_attn", TORCH_BOX(&ms_deform_attn));
  m.impl("ms_deform_attn_fused", TORCH_BOX(&ms_deform_attn_fused));
  m.impl("ms_deform_attn_backward", TORCH_BOX(&ms_deform_attn_backward));
}
