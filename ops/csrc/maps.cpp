// The operators mask2former::resize_rows and mask2former::mask_sums, on rows of n maps that stay in the
// cache between what makes and what reads them.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cstdint>
#include <tuple>
#include <vector>

#include "checks.h"
#include "cpu/vectors.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Between which two numbers of a line each number of a resized one lies, and how near to the second.
struct Places {
  std::vector<int32_t> low, high;
  std::vector<float> weight;

  // The numbers [start, stop) of `resized` in all; indices count from `first` of the `size` there are.
  Places(int64_t size, int64_t resized, int64_t start, int64_t stop, int64_t first) {
    for (int64_t i = start; i < stop; ++i) {
      const double scale = static_cast<double>(size) / static_cast<double>(resized);
      const double at = std::clamp((i + 0.5) * scale - 0.5, 0.0, static_cast<double>(size - 1));
      const int64_t below = static_cast<int64_t>(at);
      low.push_back(static_cast<int32_t>(below - first));
      high.push_back(static_cast<int32_t>(std::min(below + 1, size - 1) - first));
      weight.push_back(static_cast<float>(at - below));
    }
  }
};

struct ResizeRows {
  const Places &down, &across;
  const float* maps;  // (n, ..., w)
  int64_t map_stride, row_stride;
  float* out;  // (n, rows, width)

  template <int64_t LANES>
  MSDA_INLINE void run(int64_t begin, int64_t end) const {
    const int64_t rows = down.low.size(), width = across.low.size();
    const msda::Floats room(2 * width);
    for (int64_t i = begin; i < end; ++i) {
      int64_t widened[2] = {-1, -1};  // even and odd rows that are there
      for (int64_t y = 0; y < rows; ++y) {
        for (const int64_t row : {down.low[y], down.high[y]}) {
          if (widened[row % 2] == row) continue;
          widen(maps + i * map_stride + row * row_stride, room.get() + row % 2 * width);
          widened[row % 2] = row;
        }
        mix(room.get() + down.low[y] % 2 * width, room.get() + down.high[y] % 2 * width,
            down.weight[y], out + (i * rows + y) * width);
      }
    }
  }

  MSDA_INLINE void widen(const float* MSDA_RESTRICT from, float* MSDA_RESTRICT to) const {
    const int32_t* MSDA_RESTRICT low = across.low.data();
    const int32_t* MSDA_RESTRICT high = across.high.data();
    const float* MSDA_RESTRICT weight = across.weight.data();
    const int64_t width = across.low.size();
    for (int64_t x = 0; x < width; ++x) {
      to[x] = (1 - weight[x]) * from[low[x]] + weight[x] * from[high[x]];
    }
  }

  MSDA_INLINE void mix(const float* above, const float* below, float weight,
                       float* MSDA_RESTRICT to) const {
    const int64_t width = across.low.size();
    for (int64_t x = 0; x < width; ++x) to[x] = (1 - weight) * above[x] + weight * below[x];
  }
};

struct MaskSums {
  const float* logits;  // (n, H, W)
  int64_t H, W, map_stride, row_stride;
  bool* inside;  // (n, H, W), contiguous
  int64_t* areas;
  float* sums;

  template <int64_t LANES>
  MSDA_INLINE void run(int64_t begin, int64_t end) const {
    for (int64_t i = begin; i < end; ++i) {
      int64_t area = 0;
      double sum = 0;
      for (int64_t y = 0; y < H; ++y) {
        sum_line(logits + i * map_stride + y * row_stride, inside + (i * H + y) * W, area, sum);
      }
      areas[i] = area;
      sums[i] = static_cast<float>(sum);
    }
  }

  MSDA_INLINE void sum_line(const float* MSDA_RESTRICT from, bool* MSDA_RESTRICT to, int64_t& area,
                            double& sum) const {
    int32_t pixels = 0;
    float probabilities = 0;
#pragma omp simd reduction(+ : probabilities)
    for (int64_t x = 0; x < W; ++x) {
      const float e = msda::exp_of_negative(from[x] > 0 ? -from[x] : 0.0f);
      probabilities += from[x] > 0 ? 1 / (1 + e) : 0.0f;
    }
    for (int64_t x = 0; x < W; ++x) {
      to[x] = from[x] > 0;
      pixels += to[x];
    }
    area += pixels;
    sum += probabilities;
  }
};

void check_maps(const char* name, const Tensor& maps) {
  STD_TORCH_CHECK(maps.scalar_type() == ScalarType::Float && maps.is_cpu() && maps.dim() == 3 &&
                      (maps.size(2) < 2 || maps.stride(2) == 1),
                  name, ": expected maps (n, rows, width) in float32 on the CPU, the pixels of a row ",
                  "adjacent; they have shape ", msda::shape_of(maps));
}

// maps: the rows from `first` on of n maps that have `source_height`. Returns the rows [start, stop) of
// these maps of another (height, width): (n, stop - start, width).
Tensor resize_rows(const Tensor& maps, int64_t first, int64_t source_height, int64_t start,
                   int64_t stop, int64_t height, int64_t width) {
  check_maps("resize_rows", maps);
  STD_TORCH_CHECK(0 <= first && 0 <= start && start < stop && stop <= height,
                  "resize_rows: there are no rows ", start, " to ", stop, " of ", height,
                  ", or no row ", first);
  STD_TORCH_CHECK(source_height > 0 && width > 0 && maps.size(2) > 0, "resize_rows: maps ",
                  msda::shape_of(maps), " of the height ", source_height, " or the width ", width,
                  " are empty");
  const Places down(source_height, height, start, stop, first);
  const Places across(maps.size(2), width, 0, width, 0);
  STD_TORCH_CHECK(down.low.front() >= 0 && down.high.back() < maps.size(1),
                  "resize_rows: maps ", msda::shape_of(maps), " from row ", first, " of ",
                  source_height, " on lack rows for ", start, " to ", stop, " of ", height);
  Tensor out = torch::stable::new_empty(maps, {maps.size(0), stop - start, width});
  msda::in_parallel(maps.size(0), 1,
                    ResizeRows{down, across, maps.const_data_ptr<float>(), maps.stride(0),
                               maps.stride(1), out.mutable_data_ptr<float>()});
  return out;
}

// logits: (n, H, W). Returns where they are positive, the pixels of it, (n), and the sums of their
// sigmoids there, (n).
std::tuple<Tensor, Tensor, Tensor> mask_sums(const Tensor& logits) {
  check_maps("mask_sums", logits);
  const int64_t n = logits.size(0), H = logits.size(1), W = logits.size(2);
  Tensor inside = torch::stable::new_empty(logits, {n, H, W}, ScalarType::Bool);
  Tensor areas = torch::stable::new_empty(logits, {n}, ScalarType::Long);
  Tensor sums = torch::stable::new_empty(logits, {n});
  msda::in_parallel(n, 1,
                    MaskSums{logits.const_data_ptr<float>(), H, W, logits.stride(0),
                             logits.stride(1), inside.mutable_data_ptr<bool>(),
                             areas.mutable_data_ptr<int64_t>(), sums.mutable_data_ptr<float>()});
  return {inside, areas, sums};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(mask2former, m) {
  m.def(
      "resize_rows(Tensor maps, int first, int source_height, int start, int stop, int height, "
      "int width) -> Tensor");
  m.def("mask_sums(Tensor logits) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(mask2former, CPU, m) {
  m.impl("resize_rows", TORCH_BOX(&resize_rows));
  m.impl("mask_sums", TORCH_BOX(&mask_sums));
}
