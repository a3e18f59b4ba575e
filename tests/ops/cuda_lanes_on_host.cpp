// Runs the CUDA kernels' arithmetic (ops/csrc/cuda/lane.cuh) lane by lane on the CPU, in double.
#include "../../ops/csrc/cuda/lane.cuh"

namespace {

constexpr int V = 2;

struct Row {
  int64_t index, value;  // offset of the row's first channel in its picture's first pixel
};

Row row_of(const msda::Sizes& sizes, int64_t row) {
  const int64_t head = row % sizes.M, picture = row / (sizes.M * sizes.Q);
  return {row, (picture * sizes.S * sizes.M + head) * sizes.D};
}

// f(row, channel, sample, first, height, width) for every lane and sample.
template <typename F>
void for_samples(const msda::Sizes& sizes, const msda::Levels& levels, const F& f) {
  for (int64_t index = 0; index < sizes.B * sizes.Q * sizes.M; ++index) {
    const Row row = row_of(sizes, index);
    for (int64_t channel = 0; channel < sizes.D; channel += V) {
      for (int level = 0; level < sizes.L; ++level) {
        for (int64_t point = 0; point < sizes.P; ++point) {
          const int64_t sample = (index * sizes.L + level) * sizes.P + point;
          const int64_t first =
              row.value + channel + levels.first[level] * sizes.M * sizes.D;
          f(row, channel, sample, first, levels.height[level], levels.width[level]);
        }
      }
    }
  }
}

template <typename Samples>
void forward_of(const msda::Sizes& sizes, const msda::Levels& levels, const double* value,
                const Samples& samples, double* out) {
  for_samples(sizes, levels, [&](Row row, int64_t channel, int64_t sample, int64_t first,
                                 int height, int width) {
    const msda::Sample<double> at = samples.row(sizes, row.index)(sample);
    msda::Place<double> place;
    if (!msda::locate(at.x, at.y, height, width, place)) return;
    double sum[V] = {};
    msda::forward_sample<double, double, V>(place, at.attention, value + first,
                                            sizes.M * sizes.D, sum);
    for (int c = 0; c < V; ++c) out[row.index * sizes.D + channel + c] += sum[c];
  });
}

}  // namespace

extern "C" void forward(msda::Sizes sizes, const msda::Levels* levels, const double* value,
                        const double* locations, const double* attention, double* out) {
  forward_of(sizes, *levels, value, msda::GivenSamples<double>{locations, attention}, out);
}

extern "C" void forward_fused(msda::Sizes sizes, const msda::Levels* levels, const double* value,
                              const double* offsets, const double* logits,
                              const double* reference, double* out) {
  const msda::ProjectedSamples<double> samples{offsets, logits, reference};
  forward_of(sizes, *levels, value, samples, out);
}

extern "C" void backward(msda::Sizes sizes, const msda::Levels* levels, const double* value,
                         const double* locations, const double* attention, const double* grad_out,
                         double* grad_value, double* grad_locations, double* grad_attention) {
  for_samples(sizes, *levels, [&](Row row, int64_t channel, int64_t sample, int64_t first,
                                  int height, int width) {
    msda::Place<double> place;
    if (!msda::locate(locations[2 * sample], locations[2 * sample + 1], height, width, place)) {
      return;
    }
    double grad[V];
    for (int c = 0; c < V; ++c) grad[c] = grad_out[row.index * sizes.D + channel + c];
    const int64_t stride = sizes.M * sizes.D;
    const auto part = msda::backward_sample<double, double, V>(
        place, attention[sample], value + first, stride, grad,
        [&](int64_t pixel, const msda::Vector<double, V>& to_value) {
          for (int c = 0; c < V; ++c) grad_value[first + pixel * stride + c] += to_value.at[c];
        });
    grad_attention[sample] += part.attention;
    grad_locations[2 * sample] += part.x * width;
    grad_locations[2 * sample + 1] += part.y * height;
  });
}
