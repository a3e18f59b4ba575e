// Runs the CUDA kernels' arithmetic (ops/csrc/cuda/sample.cuh) on the CPU, in double.
#include "../../ops/csrc/cuda/sample.cuh"

namespace {

constexpr int V = 2;

// f(row, channel, sample, offset of the row's channel in its picture's first pixel, place, level).
template <typename F>
void for_samples(const msda::Sizes& sizes, const msda::Level* levels, const double* locations,
                 const F& f) {
  for (int64_t row = 0; row < sizes.B * sizes.Q * sizes.M; ++row) {
    const int64_t head = row % sizes.M, picture = row / (sizes.M * sizes.Q);
    for (int64_t channel = 0; channel < sizes.D; channel += V) {
      const int64_t first = (picture * sizes.S * sizes.M + head) * sizes.D + channel;
      for (int64_t s = 0; s < sizes.samples(); ++s) {
        const int64_t sample = row * sizes.samples() + s;
        const msda::Level& level = levels[s / sizes.P];
        const auto place = msda::locate(locations[2 * sample] * level.width,
                                        locations[2 * sample + 1] * level.height, level);
        f(row, channel, sample, first, place, level);
      }
    }
  }
}

msda::Pixels<double> pixels_from(const double* first, const msda::Sizes& sizes) {
  return {{reinterpret_cast<const char*>(first)},
          static_cast<uint32_t>(sizes.M * sizes.D * sizeof(double))};
}

}  // namespace

extern "C" void forward(msda::Sizes sizes, const msda::Level* levels, const double* value,
                        const double* locations, const double* attention, double* out) {
  for_samples(sizes, levels, locations,
              [&](int64_t row, int64_t channel, int64_t sample, int64_t first, const auto& place,
                  const msda::Level&) {
                double sum[V] = {};
                const auto corners = msda::weigh(place, attention[sample]);
                msda::forward_sample(corners, pixels_from(value + first, sizes), sum);
                for (int c = 0; c < V; ++c) out[row * sizes.D + channel + c] += sum[c];
              });
}

extern "C" void backward(msda::Sizes sizes, const msda::Level* levels, const double* value,
                         const double* locations, const double* attention, const double* grad_out,
                         double* grad_value, double* grad_locations, double* grad_attention) {
  const int64_t stride = sizes.M * sizes.D;
  for_samples(sizes, levels, locations,
              [&](int64_t row, int64_t channel, int64_t sample, int64_t first, const auto& place,
                  const msda::Level& level) {
                double grad[V], products[4] = {};
                for (int c = 0; c < V; ++c) grad[c] = grad_out[row * sizes.D + channel + c];
                msda::backward_sample(place.pixel, pixels_from(value + first, sizes), grad, products);
                if (place.near) {
                  const msda::Cell cell(place.cell, level);
                  const msda::Link<double> link{place.right, place.lower, attention[sample], 0};
                  for (int corner = 0; corner < 4; ++corner) {
                    if (!cell.inside(corner, level)) continue;
                    for (int c = 0; c < V; ++c) {
                      grad_value[first + cell.pixel(corner, level) * stride + c] +=
                          link.weight(corner) * grad[c];
                    }
                  }
                }
                const auto part = msda::gradient(place, attention[sample], products);
                grad_attention[sample] += part.attention;
                grad_locations[2 * sample] += part.x * level.width;
                grad_locations[2 * sample + 1] += part.y * level.height;
              });
}
