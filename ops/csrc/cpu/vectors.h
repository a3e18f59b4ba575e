// Vectors of LANES floats, for what compilers do not vectorise well by themselves, and the choice of a
// width.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <atomic>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <type_traits>

#include "vectorise.h"

namespace msda {

template <int64_t LANES>
struct Vector {
#if defined(__GNUC__) || defined(__clang__)
  typedef float Lanes __attribute__((vector_size(LANES * sizeof(float))));
#else
  struct Lanes {
    float lane[LANES];
#define MSDA_LANEWISE(OP)                                                   \
  MSDA_INLINE friend Lanes operator OP(const Lanes& a, const Lanes& b) {    \
    Lanes c;                                                                \
    for (int64_t i = 0; i < LANES; ++i) c.lane[i] = a.lane[i] OP b.lane[i]; \
    return c;                                                               \
  }
    MSDA_LANEWISE(+)
    MSDA_LANEWISE(-)
#undef MSDA_LANEWISE
    MSDA_INLINE friend Lanes operator*(float a, const Lanes& b) {
      Lanes c;
      for (int64_t i = 0; i < LANES; ++i) c.lane[i] = a * b.lane[i];
      return c;
    }
    MSDA_INLINE void operator+=(const Lanes& b) { *this = *this + b; }
  };
#endif
};

// Loads and stores need no alignment. V: Vector<LANES>::Lanes; a vector that is returned would depend
// on the instruction set.
template <typename V, typename T>
MSDA_INLINE void load(const T* from, V& to) {
  if constexpr (std::is_same_v<T, float>) {
    std::memcpy(&to, from, sizeof to);
  } else {
    float lanes[sizeof(V) / sizeof(float)];
    for (size_t i = 0; i < sizeof(V) / sizeof(float); ++i) lanes[i] = static_cast<float>(from[i]);
    std::memcpy(&to, lanes, sizeof to);
  }
}

template <typename V, typename T>
MSDA_INLINE void store(const V& from, T* to) {
  if constexpr (std::is_same_v<T, float>) {
    std::memcpy(to, &from, sizeof from);
  } else {
    float lanes[sizeof(V) / sizeof(float)];
    std::memcpy(lanes, &from, sizeof from);
    for (size_t i = 0; i < sizeof(V) / sizeof(float); ++i) to[i] = static_cast<T>(lanes[i]);
  }
}

// Room for floats, at the start of a line of the cache.
class Floats {
 public:
  explicit Floats(int64_t count)
      : data_(static_cast<float*>(::operator new[](count * sizeof(float), kLine))) {}
  float* get() const { return data_.get(); }

 private:
  static constexpr std::align_val_t kLine{64};
  struct Free {
    void operator()(float* data) const { ::operator delete[](data, kLine); }
  };
  std::unique_ptr<float[], Free> data_;
};

// ---- Tasks: task.run<LANES>(begin, end) does a part of them --------------------------------------
//
// All that it calls has to be inline: a function is compiled for the instructions of what it is in.

inline std::atomic<int64_t> most_lanes{16};  // tests want fewer

#if defined(__AVX512F__)
constexpr int64_t kLanesAnywhere = 16;
#elif defined(__AVX__)
constexpr int64_t kLanesAnywhere = 8;
#else
constexpr int64_t kLanesAnywhere = 4;  // of SSE2 and NEON
#endif

template <typename Task>
void run_anywhere(const Task& task, int64_t begin, int64_t end) {
  task.template run<kLanesAnywhere>(begin, end);
}
#ifdef MSDA_LEVELS
template <typename Task>
__attribute__((target("arch=x86-64-v3"))) void run_avx2(const Task& task, int64_t begin,
                                                        int64_t end) {
  task.template run<8>(begin, end);
}
template <typename Task>
__attribute__((target("arch=x86-64-v4"))) void run_avx512(const Task& task, int64_t begin,
                                                          int64_t end) {
  task.template run<16>(begin, end);
}
#endif

// How many there are in the vectors that tasks are run with.
inline int64_t lanes() {
#ifdef MSDA_LEVELS
  if (most_lanes >= 16 && __builtin_cpu_supports("x86-64-v4")) return 16;
  if (most_lanes >= 8 && __builtin_cpu_supports("x86-64-v3")) return 8;
#endif
  return kLanesAnywhere;
}

// [0, count) of a task by torch's threads, at most one for each `grain`.
template <typename Task>
void in_parallel(int64_t count, int64_t grain, const Task& task) {
  auto run = run_anywhere<Task>;
#ifdef MSDA_LEVELS
  if (lanes() == 8) run = run_avx2<Task>;
  if (lanes() == 16) run = run_avx512<Task>;
#endif
  torch::stable::parallel_for(
      0, count, grain, [&](int64_t begin, int64_t end) { run(task, begin, end); });
}

}  // namespace msda
