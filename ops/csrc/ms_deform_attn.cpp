// The operators mask2former::ms_deform_attn, ms_deform_attn_fused and their gradients: their schemas
// and their CPU implementations, on LibTorch's stable ABI.
//
// Multi-scale deformable attention is equation 3 of Zhu et al., Deformable DETR, ICLR 2021:
// for each query and head, the sum of the attention weights times the values at the sampled places.
// A location (x, y) in [0, 1] is the point (x * W - 0.5, y * H - 0.5) of a level whose pixel centres
// have integer coordinates; values between them are bilinear, those outside 0.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "checks.h"
#include "cpu/kernels.h"

namespace {

using c10::BFloat16;
using c10::Half;
using msda::check_inputs;
using msda::check_shape;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// ---- The kernels, for each type and processor ---------------------------------------------------

#define MSDA_KERNELS(A)                                                                      \
  MSDA_MULTIVERSION void forward_rows(msda::Block<A>& block, const A* value, int64_t rows) {  \
    msda::forward_rows(block, value, rows);                                                  \
  }                                                                                          \
  MSDA_MULTIVERSION void backward_rows(msda::Block<A>& block, const A* value, A* grad_value,  \
                                       int64_t rows) {                                       \
    msda::backward_rows(block, value, grad_value, rows);                                     \
  }                                                                                          \
  MSDA_MULTIVERSION void finish_projection(msda::Block<A>& block, const A* reference,         \
                                           int64_t rows) {                                   \
    msda::finish_projection(block, reference, rows);                                         \
  }                                                                                          \
  MSDA_MULTIVERSION void finish_gradients(msda::Block<A>& block, int64_t rows) {             \
    msda::finish_gradients(block, rows);                                                     \
  }
#define MSDA_COPIES(T, A)                                                                      \
  MSDA_MULTIVERSION void copy_rows(const T* from, int64_t from_stride, A* to, int64_t to_stride, \
                                   int64_t rows, int64_t length) {                             \
    msda::copy_rows(from, from_stride, to, to_stride, rows, length);                           \
  }
MSDA_KERNELS(float)
MSDA_KERNELS(double)
MSDA_COPIES(float, float)
MSDA_COPIES(double, double)
MSDA_COPIES(BFloat16, float)
MSDA_COPIES(float, BFloat16)
MSDA_COPIES(Half, float)
MSDA_COPIES(float, Half)
#undef MSDA_KERNELS
#undef MSDA_COPIES

// ---- From tensors to blocks ---------------------------------------------------------------------

// T is the type of the values in memory; A is the type computed in: double for double, else float.
// With reference points, `locations` are offsets from them, in pixels of the level, and `attention`
// are logits.
template <typename T, typename A>
struct Arrays {
  const T* value;      // (B, S, M, D)
  const A* locations;  // (B, Q, M, L, P, 2)
  const A* attention;  // (B, Q, M, L, P)
  const A* reference = nullptr;  // (Q, 2)
};

// A slice is what one picture and head have of each array. Its values are copied, in the type that
// is computed in, to where its pixels are adjacent: each is read some 48 times, and pixels that are
// M * D apart would crowd each other out of the caches.
template <typename T, typename A>
void load_values(const msda::Sizes& sizes, const T* value, int64_t slice, A* to) {
  const int64_t stride = sizes.M * sizes.D, picture = slice / sizes.M, head = slice % sizes.M;
  copy_rows(value + picture * sizes.S * stride + head * sizes.D, stride, to, sizes.D, sizes.S,
            sizes.D);
}

// The row of the first of the `rows` queries of a block in the (B, Q, M, ...) arrays.
template <typename T, typename A>
void load_samples(const msda::Sizes& sizes, const Arrays<T, A>& in, int64_t row, int64_t rows,
                  msda::Block<A>& block) {
  const int64_t n = block.n, M = sizes.M;
  copy_rows(in.locations + row * 2 * n, M * 2 * n, block.locations, 2 * n, rows, 2 * n);
  copy_rows(in.attention + row * n, M * n, block.attention, n, rows, n);
  if (in.reference) finish_projection(block, in.reference + row / M % sizes.Q * 2, rows);
}

// f(row, rows) for each block of the queries [begin, end) of a slice: the index among B * Q * M of
// the first row, and the number of rows, which are M apart.
template <typename F>
void for_blocks(const msda::Sizes& sizes, int64_t slice, int64_t begin, int64_t end, const F& f) {
  const int64_t picture = slice / sizes.M, head = slice % sizes.M, step = msda::block_rows(sizes);
  for (int64_t query = begin; query < end; query += step) {
    f((picture * sizes.Q + query) * sizes.M + head, std::min(step, end - query));
  }
}

// Outputs [begin, end) of the B * M * Q, in this order: a thread reads few slices.
template <typename T, typename A>
void forward(const msda::Sizes& sizes, const std::vector<int64_t>& shapes, const Arrays<T, A>& in,
             T* out, int64_t begin, int64_t end) {
  const int64_t D = sizes.D, M = sizes.M, Q = sizes.Q;
  const std::unique_ptr<A[]> value(new A[sizes.S * D]);
  const auto block = std::make_unique<msda::Block<A>>(sizes, shapes);
  for (int64_t slice = begin / Q; slice * Q < end; ++slice) {
    load_values(sizes, in.value, slice, value.get());
    for_blocks(sizes, slice, std::max(begin - slice * Q, int64_t(0)), std::min(end - slice * Q, Q),
               [&](int64_t row, int64_t rows) {
                 load_samples(sizes, in, row, rows, *block);
                 forward_rows(*block, value.get(), rows);
                 copy_rows(block->out.data(), D, out + row * D, M * D, rows, D);
               });
  }
}

// All gradients of the slices [begin, end) of the B * M. A slice belongs to one thread, so the sums
// in grad_value need no atomics and always have the same order.
template <typename T, typename A>
void backward(const msda::Sizes& sizes, const std::vector<int64_t>& shapes, const Arrays<T, A>& in,
              const T* grad_out, T* grad_value, A* grad_locations, A* grad_attention,
              int64_t begin, int64_t end) {
  const int64_t D = sizes.D, M = sizes.M, S = sizes.S, n = sizes.samples();
  const std::unique_ptr<A[]> value(new A[S * D]), grad(new A[S * D]);
  const auto block = std::make_unique<msda::Block<A>>(sizes, shapes);
  for (int64_t slice = begin; slice < end; ++slice) {
    load_values(sizes, in.value, slice, value.get());
    std::fill_n(grad.get(), S * D, A(0));
    for_blocks(sizes, slice, 0, sizes.Q, [&](int64_t row, int64_t rows) {
      load_samples(sizes, in, row, rows, *block);
      copy_rows(grad_out + row * D, M * D, block->out.data(), D, rows, D);
      backward_rows(*block, value.get(), grad.get(), rows);
      if (in.reference) finish_gradients(*block, rows);
      copy_rows(block->grad_locations, 2 * n, grad_locations + row * 2 * n, M * 2 * n, rows, 2 * n);
      copy_rows(block->grad_attention, n, grad_attention + row * n, M * n, rows, n);
    });
    const int64_t picture = slice / M, head = slice % M;
    copy_rows(grad.get(), D, grad_value + (picture * S * M + head) * D, M * D, S, D);
  }
}

// ---- Operators ----------------------------------------------------------------------------------

// Less work than this many multiply-adds is not worth another thread.
constexpr int64_t kGrain = 1 << 17;

// `reference_points` may be null: see Arrays.
Tensor run_forward(const Tensor& value, const std::vector<int64_t>& spatial_shapes,
                   const Tensor* reference_points, const Tensor& sampling_locations,
                   const Tensor& attention_weights) {
  const msda::Sizes sizes =
      check_inputs(value, spatial_shapes, sampling_locations, attention_weights);
  if (reference_points) msda::check_reference(*reference_points, sampling_locations);
  const Tensor v = torch::stable::contiguous(value);
  const Tensor locations = torch::stable::contiguous(sampling_locations);
  const Tensor attention = torch::stable::contiguous(attention_weights);
  const Tensor reference =
      torch::stable::contiguous(reference_points ? *reference_points : attention_weights);
  Tensor out = torch::stable::new_empty(value, {sizes.B, sizes.Q, sizes.M * sizes.D});
  msda::dispatch_type(value.scalar_type(), [&](auto t, auto a) {
    using T = decltype(t);
    using A = decltype(a);
    const Arrays<T, A> in{v.const_data_ptr<T>(), locations.const_data_ptr<A>(),
                          attention.const_data_ptr<A>(),
                          reference_points ? reference.const_data_ptr<A>() : nullptr};
    T* to = out.mutable_data_ptr<T>();
    const int64_t row_work = 4 * sizes.samples() * std::max<int64_t>(sizes.D, 1);
    torch::stable::parallel_for(0, sizes.B * sizes.M * sizes.Q, kGrain / row_work + 1,
                                [&](int64_t begin, int64_t end) {
                                  forward(sizes, spatial_shapes, in, to, begin, end);
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

using Gradients = std::tuple<Tensor, Tensor, Tensor>;

// `reference_points` may be null: see Arrays. The gradients are those of what is given.
Gradients run_backward(const Tensor& grad_output, const Tensor& value,
                       const std::vector<int64_t>& spatial_shapes, const Tensor* reference_points,
                       const Tensor& sampling_locations, const Tensor& attention_weights) {
  const msda::Sizes sizes =
      check_inputs(value, spatial_shapes, sampling_locations, attention_weights);
  if (reference_points) msda::check_reference(*reference_points, sampling_locations);
  msda::check_gradient(grad_output, value, sizes);
  const Tensor grad = torch::stable::contiguous(grad_output);
  const Tensor v = torch::stable::contiguous(value);
  const Tensor locations = torch::stable::contiguous(sampling_locations);
  const Tensor attention = torch::stable::contiguous(attention_weights);
  const Tensor reference =
      torch::stable::contiguous(reference_points ? *reference_points : attention_weights);
  Tensor grad_value = torch::stable::new_empty(value, value.sizes());
  Tensor grad_locations = torch::stable::new_empty(sampling_locations, sampling_locations.sizes());
  Tensor grad_attention = torch::stable::new_empty(attention_weights, attention_weights.sizes());
  msda::dispatch_type(value.scalar_type(), [&](auto t, auto a) {
    using T = decltype(t);
    using A = decltype(a);
    const Arrays<T, A> in{v.const_data_ptr<T>(), locations.const_data_ptr<A>(),
                          attention.const_data_ptr<A>(),
                          reference_points ? reference.const_data_ptr<A>() : nullptr};
    const T* grad_out = grad.const_data_ptr<T>();
    T* to_value = grad_value.mutable_data_ptr<T>();
    A* to_locations = grad_locations.mutable_data_ptr<A>();
    A* to_attention = grad_attention.mutable_data_ptr<A>();
    const int64_t slice_work = 8 * sizes.samples() * std::max<int64_t>(sizes.Q * sizes.D, 1);
    torch::stable::parallel_for(0, sizes.B * sizes.M, kGrain / slice_work + 1,
                                [&](int64_t begin, int64_t end) {
                                  backward(sizes, spatial_shapes, in, grad_out, to_value,
                                           to_locations, to_attention, begin, end);
                                });
  });
  return {grad_value, grad_locations, grad_attention};
}

// Always deterministic.
Gradients ms_deform_attn_backward(const Tensor& grad_output, const Tensor& value,
                                  const std::vector<int64_t> spatial_shapes,
                                  const Tensor& sampling_locations,
                                  const Tensor& attention_weights, bool /*deterministic*/) {
  return run_backward(grad_output, value, spatial_shapes, nullptr, sampling_locations,
                      attention_weights);
}

Gradients ms_deform_attn_fused_backward(const Tensor& grad_output, const Tensor& value,
                                        const std::vector<int64_t> spatial_shapes,
                                        const Tensor& reference_points,
                                        const Tensor& sampling_offsets,
                                        const Tensor& attention_logits, bool /*deterministic*/) {
  return run_backward(grad_output, value, spatial_shapes, &reference_points, sampling_offsets,
                      attention_logits);
}

}  // namespace

STABLE_TORCH_LIBRARY(mask2former, m) {
  m.def(
      "ms_deform_attn(Tensor value, SymInt[] spatial_shapes, Tensor sampling_locations, "
      "Tensor attention_weights) -> Tensor");
  m.def(
      "ms_deform_attn_fused(Tensor value, SymInt[] spatial_shapes, Tensor reference_points, "
      "Tensor sampling_offsets, Tensor attention_logits) -> Tensor");
  m.def(
      "ms_deform_attn_backward(Tensor grad_output, Tensor value, SymInt[] spatial_shapes, "
      "Tensor sampling_locations, Tensor attention_weights, bool deterministic) -> "
      "(Tensor, Tensor, Tensor)");
  m.def(
      "ms_deform_attn_fused_backward(Tensor grad_output, Tensor value, SymInt[] spatial_shapes, "
      "Tensor reference_points, Tensor sampling_offsets, Tensor attention_logits, "
      "bool deterministic) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(mask2former, CPU, m) {
  m.impl("ms_deform_attn", TORCH_BOX(&ms_deform_attn));
  m.impl("ms_deform_attn_fused", TORCH_BOX(&ms_deform_attn_fused));
  m.impl("ms_deform_attn_backward", TORCH_BOX(&ms_deform_attn_backward));
  m.impl("ms_deform_attn_fused_backward", TORCH_BOX(&ms_deform_attn_fused_backward));
}
