// What the implementations for all devices check before they trust their inputs.
//
// Letters: B pictures, S pixels of all levels together, Q queries, M heads, D channels of a head,
// L levels, P points.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "sizes.h"

namespace msda {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline std::string shape_of(const Tensor& tensor) {
  std::string text = "(";
  for (int64_t i = 0; i < tensor.dim(); ++i) {
    text += (i ? ", " : "") + std::to_string(tensor.size(i));
  }
  return text + ")";
}

inline void check_shape(const char* name, const Tensor& tensor, const std::vector<int64_t>& expected) {
  bool same = tensor.dim() == static_cast<int64_t>(expected.size());
  std::string text;
  for (size_t i = 0; i < expected.size(); ++i) {
    same = same && tensor.size(static_cast<int64_t>(i)) == expected[i];
    text += (i ? ", " : "") + std::to_string(expected[i]);
  }
  STD_TORCH_CHECK(same, "ms_deform_attn: ", name, " has shape ", shape_of(tensor), ", expected (",
                  text, ")");
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

constexpr int64_t kMaxSide = 1 << 24;  // float32 has these integers

// The sizes, once everything that the kernels rely on has been checked.
inline Sizes check_inputs(const Tensor& value, const std::vector<int64_t>& shapes,
                         const Tensor& locations, const Tensor& attention) {
  STD_TORCH_CHECK(value.dim() == 4, "ms_deform_attn: value has shape ", shape_of(value),
                  ", expected (B, S, M, D)");
  STD_TORCH_CHECK(locations.dim() == 6, "ms_deform_attn: sampling_locations has shape ",
                  shape_of(locations), ", expected (B, Q, M, L, P, 2)");
  Sizes sizes{value.size(0),     value.size(1),     value.size(2),    value.size(3),
                    locations.size(1), locations.size(3), locations.size(4)};
  STD_TORCH_CHECK(shapes.size() == static_cast<size_t>(2 * sizes.L),
                  "ms_deform_attn: spatial_shapes has ", shapes.size(), " numbers, but ",
                  "sampling_locations ", shape_of(locations), " has ", sizes.L, " levels");
  int64_t pixels = 0;
  for (int64_t level = 0; level < sizes.L; ++level) {
    const int64_t h = shapes[2 * level], w = shapes[2 * level + 1];
    STD_TORCH_CHECK(0 < h && h <= kMaxSide && 0 < w && w <= kMaxSide,
                    "ms_deform_attn: spatial_shapes has a level of size (", h, ", ", w,
                    "), expected 1 to ", kMaxSide);
    pixels += h * w;
  }
  STD_TORCH_CHECK(pixels == sizes.S, "ms_deform_attn: value ", shape_of(value), " has ", sizes.S,
                  " pixels, spatial_shapes ", pixels);
  STD_TORCH_CHECK(pixels <= std::numeric_limits<int32_t>::max() / std::max<int64_t>(sizes.D, 1),
                  "ms_deform_attn: value ", shape_of(value), " has S * D >= 2**31");
  STD_TORCH_CHECK(sizes.samples() >= 1 && sizes.samples() <= kMaxSamples,
                  "ms_deform_attn: levels times points is ", sizes.samples(), ", expected 1 to ",
                  kMaxSamples);
  check_shape("sampling_locations", locations, {sizes.B, sizes.Q, sizes.M, sizes.L, sizes.P, 2});
  check_shape("attention_weights", attention, {sizes.B, sizes.Q, sizes.M, sizes.L, sizes.P});
  const ScalarType computed =
      value.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  STD_TORCH_CHECK(locations.scalar_type() == computed && attention.scalar_type() == computed,
                  "ms_deform_attn: sampling_locations and attention_weights must be float64 where "
                  "value is, else float32");
  STD_TORCH_CHECK(value.is_cpu() == locations.is_cpu() && value.is_cpu() == attention.is_cpu() &&
                      value.get_device_index() == locations.get_device_index() &&
                      value.get_device_index() == attention.get_device_index(),
                  "ms_deform_attn: value, sampling_locations and attention_weights must be on the "
                  "same device");
  return sizes;
}

// Of backward, once check_inputs has passed.
inline void check_gradient(const Tensor& grad_output, const Tensor& value, const Sizes& sizes) {
  check_shape("grad_output", grad_output, {sizes.B, sizes.Q, sizes.M * sizes.D});
  STD_TORCH_CHECK(grad_output.scalar_type() == value.scalar_type() &&
                      grad_output.is_cpu() == value.is_cpu() &&
                      grad_output.get_device_index() == value.get_device_index(),
                  "ms_deform_attn: grad_output must have the type and device of value");
}

// Of the fused form, once check_inputs has passed.
inline void check_reference(const Tensor& reference, const Tensor& offsets) {
  check_shape("reference_points", reference, {offsets.size(1), 2});
  STD_TORCH_CHECK(reference.scalar_type() == offsets.scalar_type() &&
                      reference.is_cpu() == offsets.is_cpu() &&
                      reference.get_device_index() == offsets.get_device_index(),
                  "ms_deform_attn: reference_points must have the type and device of "
                  "sampling_offsets");
}

}  // namespace msda
