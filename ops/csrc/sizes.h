#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define MSDA_HD __host__ __device__ __forceinline__
#else
#define MSDA_HD inline
#endif

namespace msda {

// B pictures, S pixels of all levels together, M heads, D channels of a head, Q queries, L levels,
// P points.
struct Sizes {
  int64_t B, S, M, D, Q, L, P;
  MSDA_HD int64_t samples() const { return L * P; }
};

constexpr int64_t kMaxSamples = 1024;  // of a row

}  // namespace msda
