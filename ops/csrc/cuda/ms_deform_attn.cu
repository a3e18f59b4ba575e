// The CUDA implementations of mask2former::ms_deform_attn, its fused form and their gradients, on
// LibTorch's stable ABI. Letters as in sample.cuh.
//
// Nothing waits for the device and nothing is allocated but through PyTorch: the operators can be
// captured in a CUDA graph.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <tuple>
#include <vector>

#include "launch.cuh"

namespace msda {
namespace {

// ---- Forward ------------------------------------------------------------------------------------

// `reference_points` may be null: then locations and weights are given, else offsets and logits.
Tensor run_forward(const Tensor& value, const std::vector<int64_t>& spatial_shapes,
                   const Tensor* reference_points, const Tensor& sampling_locations,
                   const Tensor& attention_weights) {
  const Sizes sizes = check_inputs(value, spatial_shapes, sampling_locations, attention_weights);
  if (reference_points) check_reference(*reference_points, sampling_locations);
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
        launch<forward_kernel<T, A, V, decltype(numbers), decltype(samples)>, kForwardThreads>(
            walk, current_stream(value), values, samples, to);
      };
      if (reference_points) {
        run(ProjectedSamples<A>{places, weights, points});
      } else {
        run(GivenSamples<A>{places, weights});
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
  Chains chains;
  Tensor newest_of_chains, links_of_samples;
  uint32_t* newest;
  Link<A>* links;

  Chained(const Tensor& like, const Walk& walk, cudaStream_t stream)
      : chains(plan_chains(walk)),
        newest_of_chains(bytes(like, slices(walk.sizes) * chains.count * sizeof(uint32_t))),
        links_of_samples(bytes(like, slices(walk.sizes) * walk.sizes.Q * walk.sizes.samples() *
                                         sizeof(Link<A>))),
        newest(static_cast<uint32_t*>(newest_of_chains.mutable_data_ptr())),
        links(static_cast<Link<A>*>(links_of_samples.mutable_data_ptr())) {
    static_assert(kEnd == ~0u, "every byte of it is 255");
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
    const int64_t blocks = (threads + kChainThreads - 1) / kChainThreads;
    STD_TORCH_CHECK(blocks < int64_t(1) << 31, "ms_deform_attn: ", sizes.B, " pictures of ", sizes.Q,
                    " queries are too many on CUDA, where gradients are asked for");
    value_gradients_kernel<T, A, V, decltype(numbers)>
        <<<static_cast<unsigned int>(blocks), kChainThreads, 0, stream>>>(
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
  largest_kernel<<<blocks(outputs), kThreads, 0, stream>>>(grad_out, outputs, sizes_of);
  if (given_attention) {
    largest_kernel<<<blocks(samples), kThreads, 0, stream>>>(given_attention, samples,
                                                             sizes_of + 1);
  }
  multiply_kernel<<<1, 1, 0, stream>>>(sizes_of, given_attention != nullptr, limit);
  run(IntegerSums<A>{static_cast<unsigned long long*>(sums.mutable_data_ptr()), limit, bits});
  from_integers_kernel<<<blocks(count), kThreads, 0, stream>>>(
      static_cast<const long long*>(sums.const_data_ptr()), limit, bits, count,
      static_cast<T*>(result.mutable_data_ptr()));
  check(cudaGetLastError());
}

// `reference_points` as in run_forward; the gradients are those of what is given.
Gradients run_backward(const Tensor& grad_output, const Tensor& value,
                       const std::vector<int64_t>& spatial_shapes, const Tensor* reference_points,
                       const Tensor& sampling_locations, const Tensor& attention_weights,
                       bool deterministic) {
  const Sizes sizes = check_inputs(value, spatial_shapes, sampling_locations, attention_weights);
  if (reference_points) check_reference(*reference_points, sampling_locations);
  check_gradient(grad_output, value, sizes);
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
        launch<sample_gradients_kernel<T, A, V, decltype(numbers), decltype(samples)>,
               kBackwardThreads>(rows, stream, chained.chains, values, samples, from,
                                 chained.newest, chained.links, to_locations, to_attention);
      };
      if (reference_points) {
        run(ProjectedSamples<A>{places, weights, points});
      } else {
        run(GivenSamples<A>{places, weights});
      }
    });
    const auto sum = [&](auto sums) { sum_chains<T, A>(walk, from, chained, sums, stream); };
    if (deterministic) {
      const A* given = reference_points ? nullptr : weights;
      sum_integers<T, A>(sizes, from, given, value, grad_value, stream, sum);
    } else {
      sum(FloatSums<A>{static_cast<A*>(grad_value.mutable_data_ptr())});
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
}  // namespace msda

STABLE_TORCH_LIBRARY_IMPL(mask2former, CUDA, m) {
  m.impl("ms_deform_attn", TORCH_BOX(&msda::ms_deform_attn));
  m.impl("ms_deform_attn_fused", TORCH_BOX(&msda::ms_deform_attn_fused));
  m.impl("ms_deform_attn_backward", TORCH_BOX(&msda::ms_deform_attn_backward));
  m.impl("ms_deform_attn_fused_backward", TORCH_BOX(&msda::ms_deform_attn_fused_backward));
}
