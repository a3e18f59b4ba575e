// The operators mask2former::winograd_conv2d and mask2former::winograd_conv2d_weight, the gradient of
// its weights, see cpu/winograd.h.
//
// Letters: B pictures of H x W pixels, C channels in, K out. T is the type in memory; what is
// transformed is float.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/MemoryFormat.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

#include "checks.h"
#include "cpu/vectors.h"
#include "cpu/winograd.h"

namespace {

using msda::kPanel;
using msda::multiply;
using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using namespace msda::winograd;

// Transformed filters at a time, 10 MB: all those of 256 channels, in and out; the last-level cache has
// room for them.
constexpr int64_t kMostFilters = 10 << 18;
constexpr int64_t kTilesInCache = 28;      // with all channels in, and those of a panel out
constexpr int64_t kTilesOfGradient = 128;  // at least, at a time: the filters are added to each time
constexpr int64_t kGrain = 7;              // tiles for each of the threads, if it is to be taken

int64_t panels_at_a_time(int64_t C, int64_t K) {
  return std::min(K / kPanel, std::max<int64_t>(1, kMostFilters / (kElements * C * kPanel)));
}

// ---- Tasks, as msda::in_parallel takes them ------------------------------------------------------

// G g G^T of the filters of some panels, (C, kPanel) each. Anew for each call: kept, those of a network
// would fill four times the memory of its weights.
template <typename T>
struct TransformFilters {
  const T* weight;  // of the first panel
  int64_t C, out_stride, in_stride;
  int64_t taps[9];  // where they lie
  float* to;

  MSDA_INLINE Elements panel(int64_t i) const {
    return {to + i * Elements::floats(C * kPanel), C * kPanel};
  }

  template <int64_t LANES>
  MSDA_INLINE void run(int64_t begin, int64_t end) const {
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t c = 0; c < C; ++c) {
        for (int64_t k = 0; k < kPanel; k += LANES) {
          transform_lanes<LANES>(weight + (i * kPanel + k) * out_stride + c * in_stride, panel(i),
                                 c * kPanel + k);
        }
      }
    }
  }

  template <int64_t LANES>
  MSDA_INLINE void transform_lanes(const T* from, const Elements& out, int64_t at) const {
    using V = typename msda::Vector<LANES>::Lanes;
    float gathered[9][LANES];
    for (int64_t lane = 0; lane < LANES; ++lane) {
      for (int64_t tap = 0; tap < 9; ++tap) {
        gathered[tap][lane] = static_cast<float>(from[lane * out_stride + taps[tap]]);
      }
    }
    V filter[9], transformed[kElements];
    for (int64_t tap = 0; tap < 9; ++tap) msda::load(gathered[tap], filter[tap]);
    transform<G>(filter, transformed);
    for (int64_t i = 0; i < kElements; ++i) msda::store(transformed[i], out[i] + at);
  }
};

// Some panels of the output, of the tiles [begin, end).
template <typename T>
struct Convolve {
  Maps maps;
  int64_t K, panels;
  const T *x, *zeros;  // C of them
  TransformFilters<T> filters;
  const float* bias;  // of the first panel
  T* out;             // the first panel, at the first pixel

  template <int64_t LANES>
  MSDA_INLINE void run(int64_t begin, int64_t end) const {
    const int64_t C = filters.C;
    const int64_t blocks = (end - begin + kTilesInCache - 1) / kTilesInCache;
    const int64_t most = (end - begin + blocks - 1) / blocks;
    const msda::Floats patches(Elements::floats(most * C));
    const msda::Floats products(Elements::floats(most * kPanel));
    for (int64_t first = begin; first < end; first += most) {
      const int64_t count = std::min(most, end - first);
      convolve<LANES>(first, count, {patches.get(), count * C}, {products.get(), count * kPanel});
    }
  }

  template <int64_t LANES>
  MSDA_INLINE void convolve(int64_t first, int64_t count, const Elements& patches,
                            const Elements& products) const {
    const int64_t C = filters.C;
    transform_tiles<LANES, TransposedB>(x, maps, C, C, first, count, zeros, patches, 0);
    for (int64_t p = 0; p < panels; ++p) {
      const Elements filter = filters.panel(p);
      for (int64_t i = 0; i < kElements; ++i) {
        multiply<LANES>({patches[i], C, 1, filter[i], kPanel, C, products[i], kPanel, false},
                        count);
      }
      write_tiles<LANES>(products, maps, K, first, count, bias + p * kPanel, out + p * kPanel);
    }
  }
};

// What the gradient of the weights is made from, for some of the channels out.
struct Gradient {
  Maps maps;
  int64_t C, K, channels;
  const float *x, *grad_output, *zeros;
  Elements patches, grad_tiles;  // both transformed: (tiles, C), (tiles, channels)
  Elements filters;              // (C, channels)
  float* out;                    // (3, 3, C, K), its first channel
};

// B^T d B and A y A^T of tiles.
struct TransformBoth {
  Gradient g;
  int64_t first;

  template <int64_t LANES>
  MSDA_INLINE void run(int64_t begin, int64_t end) const {
    transform_tiles<LANES, TransposedB>(g.x, g.maps, g.C, g.C, first + begin, end - begin, g.zeros,
                                        g.patches, begin);
    transform_tiles<LANES, A>(g.grad_output, g.maps, g.channels, g.K, first + begin, end - begin,
                              g.zeros, g.grad_tiles, begin);
  }
};

// Adds the products of `count` tiles to (element, panel) pairs of the filters.
struct AddProducts {
  Gradient g;
  int64_t count;

  template <int64_t LANES>
  MSDA_INLINE void run(int64_t begin, int64_t end) const {
    const int64_t panels = g.channels / kPanel;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t element = i / panels, k = i % panels * kPanel;
      multiply<LANES>({g.patches[element], 1, g.C, g.grad_tiles[element] + k, g.channels, count,
                       g.filters[element] + k, g.channels, true},
                      g.C);
    }
  }
};

// G^T u G of the channels in [begin, end).
struct FinishFilters {
  Gradient g;

  template <int64_t LANES>
  MSDA_INLINE void run(int64_t begin, int64_t end) const {
    using V = typename msda::Vector<LANES>::Lanes;
    for (int64_t c = begin; c < end; ++c) {
      for (int64_t k = 0; k < g.channels; k += LANES) {
        V transformed[kElements], filter[9];
        for (int64_t i = 0; i < kElements; ++i) {
          msda::load(g.filters[i] + c * g.channels + k, transformed[i]);
        }
        transform<TransposedG>(transformed, filter);
        for (int64_t tap = 0; tap < 9; ++tap) {
          msda::store(filter[tap], g.out + (tap * g.C + c) * g.K + k);
        }
      }
    }
  }
};

// ---- Operators ----------------------------------------------------------------------------------

void check_maps(const char* op, const char* name, const Tensor& maps) {
  STD_TORCH_CHECK(maps.dim() == 4 && maps.size(1) % kPanel == 0 && maps.size(1) > 0, op, ": ",
                  name, " has shape ", msda::shape_of(maps),
                  ", expected (B, channels, H, W), channels a multiple of ", kPanel);
  STD_TORCH_CHECK(maps.is_cpu(), op, ": ", name, " must be on the CPU");
}

Tensor channels_last(const Tensor& maps) {
  return torch::stable::contiguous(maps, MemoryFormat::ChannelsLast);
}

template <typename T>
void convolve(const Tensor& x, const Tensor& weight, const float* bias, bool transposed,
              Tensor& out) {
  const Maps maps{x.size(0), x.size(2), x.size(3)};
  const int64_t C = x.size(1), K = out.size(1), most = panels_at_a_time(C, K);
  TransformFilters<T> filters{weight.const_data_ptr<T>(), C, weight.stride(transposed),
                              weight.stride(!transposed)};
  for (int64_t i = 0; i < 9; ++i) {
    const int64_t tap = transposed ? 8 - i : i;
    filters.taps[i] = tap / 3 * weight.stride(2) + tap % 3 * weight.stride(3);
  }
  const msda::Floats transformed(most * Elements::floats(C * kPanel));
  filters.to = transformed.get();
  const std::vector<T> zeros(C);
  Convolve<T> part{maps,    K,    most, x.const_data_ptr<T>(),    zeros.data(),
                   filters, bias, out.mutable_data_ptr<T>()};
  for (int64_t panel = 0; panel < K / kPanel; panel += most) {
    part.panels = std::min(most, K / kPanel - panel);
    msda::in_parallel(part.panels, 1, filters);
    msda::in_parallel(maps.tiles(), kGrain, part);
    filters.weight += most * kPanel * filters.out_stride;
    part.bias += most * kPanel;
    part.out += most * kPanel;
  }
}

// x: (B, C, H, W); weight: (K, C, 3, 3), or (C, K, 3, 3) for the gradient of the input, by filters that
// are turned by 180 degrees; bias: (K). Returns (B, K, H, W), channels last.
Tensor winograd_conv2d(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                       bool transposed) {
  check_maps("winograd_conv2d", "x", x);
  const ScalarType type = x.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::BFloat16,
                  "winograd_conv2d: x must be float32 or bfloat16");
  STD_TORCH_CHECK(
      weight.dim() == 4 && weight.size(!transposed) == x.size(1) &&
          weight.size(transposed) % kPanel == 0 && weight.size(2) == 3 && weight.size(3) == 3 &&
          weight.scalar_type() == type && weight.is_cpu(),
      "winograd_conv2d: weight ", msda::shape_of(weight), " does not fit to x ",
      msda::shape_of(x), ", or its type or device is another, or the channels are no multiple of ",
      kPanel);
  const int64_t K = weight.size(transposed);
  std::vector<float> shift(K);
  if (bias) {
    STD_TORCH_CHECK(bias->dim() == 1 && bias->size(0) == K && bias->is_cpu() &&
                        bias->scalar_type() == ScalarType::Float,
                    "winograd_conv2d: bias must be ", K, " float32 numbers on the CPU");
    const Tensor plain = torch::stable::contiguous(*bias);
    std::copy_n(plain.const_data_ptr<float>(), K, shift.begin());
  }
  const Tensor from = channels_last(x);
  // Not a view of rows: what comes next may be computed in its place.
  Tensor out = torch::stable::empty({x.size(0), K, x.size(2), x.size(3)}, type, std::nullopt,
                                    x.device(), std::nullopt, MemoryFormat::ChannelsLast);
  if (type == ScalarType::Float) {
    convolve<float>(from, weight, shift.data(), transposed, out);
  } else {
    convolve<c10::BFloat16>(from, weight, shift.data(), transposed, out);
  }
  return out;
}

// x: (B, C, H, W); grad_output: (B, K, H, W). Returns (3, 3, C, K).
Tensor winograd_conv2d_weight(const Tensor& x, const Tensor& grad_output) {
  check_maps("winograd_conv2d_weight", "x", x);
  check_maps("winograd_conv2d_weight", "grad_output", grad_output);
  const Maps maps{x.size(0), x.size(2), x.size(3)};
  const int64_t C = x.size(1), K = grad_output.size(1);
  STD_TORCH_CHECK(grad_output.size(0) == maps.B && grad_output.size(2) == maps.H &&
                      grad_output.size(3) == maps.W && x.scalar_type() == ScalarType::Float &&
                      grad_output.scalar_type() == ScalarType::Float,
                  "winograd_conv2d_weight: x ", msda::shape_of(x), " and grad_output ",
                  msda::shape_of(grad_output), " must be float32 and of the same pictures");
  const Tensor from = channels_last(x), slope = channels_last(grad_output);
  Tensor out = torch::stable::new_empty(from, {3, 3, C, K});
  const int64_t channels = panels_at_a_time(C, K) * kPanel;
  const int64_t tiles = std::min(
      maps.tiles(), std::max(kTilesOfGradient, kMostFilters / (kElements * (C + channels))));
  const std::vector<float> zeros(std::max(C, K));
  const msda::Floats patches(Elements::floats(tiles * C));
  const msda::Floats grad_tiles(Elements::floats(tiles * channels));
  const msda::Floats filters(Elements::floats(C * channels));
  Gradient g{maps, C, K};
  g.x = from.const_data_ptr<float>();
  g.zeros = zeros.data();
  g.patches = {patches.get(), tiles * C};
  for (int64_t channel = 0; channel < K; channel += channels) {
    g.channels = std::min(channels, K - channel);
    g.grad_output = slope.const_data_ptr<float>() + channel;
    g.out = out.mutable_data_ptr<float>() + channel;
    g.grad_tiles = {grad_tiles.get(), tiles * g.channels};
    g.filters = {filters.get(), C * g.channels};
    std::fill_n(g.filters.data, Elements::floats(g.filters.size), 0.0f);
    for (int64_t first = 0; first < maps.tiles(); first += tiles) {
      const int64_t count = std::min(tiles, maps.tiles() - first);
      msda::in_parallel(count, kGrain, TransformBoth{g, first});
      msda::in_parallel(kElements * g.channels / kPanel, 1, AddProducts{g, count});
    }
    msda::in_parallel(C, 1, FinishFilters{g});
  }
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(mask2former, m) {
  m.def("winograd_conv2d(Tensor x, Tensor weight, Tensor? bias, bool transposed) -> Tensor");
  m.def("winograd_conv2d_weight(Tensor x, Tensor grad_output) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(mask2former, CPU, m) {
  m.impl("winograd_conv2d", TORCH_BOX(&winograd_conv2d));
  m.impl("winograd_conv2d_weight", TORCH_BOX(&winograd_conv2d_weight));
}
