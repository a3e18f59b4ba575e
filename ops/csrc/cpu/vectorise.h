// What compilers need to be told, and the exponential function in a form that they vectorise.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__GNUC__) || defined(__clang__)
#define MSDA_INLINE inline __attribute__((always_inline))
#define MSDA_RESTRICT __restrict__
#elif defined(_MSC_VER)
#define MSDA_INLINE __forceinline
#define MSDA_RESTRICT __restrict
#else
#define MSDA_INLINE inline
#define MSDA_RESTRICT
#endif

// One library for every x86-64: the version that suits the processor is picked when it runs. This takes
// GCC's indirect functions and glibc; elsewhere the instruction set is the one in CXXFLAGS.
#if defined(__x86_64__) && defined(__GLIBC__) && !defined(__clang__) && defined(__GNUC__) && \
    __GNUC__ >= 12
#define MSDA_MULTIVERSION \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#ifndef __AVX__       // CXXFLAGS that ask for a processor's instructions get them
#define MSDA_LEVELS  // of x86-64, of which a function may be compiled for one
#endif
#else
#define MSDA_MULTIVERSION
#endif

namespace msda {

// e^x for x <= 0, to 2e-7 of itself (below -87, e^-87).
MSDA_INLINE float exp_of_negative(float x) {
  x = x < -87.0f ? -87.0f : x;  // NaN stays
  // x = k ln 2 + r with |r| <= ln 2 / 2; ln 2 in two parts, the first exact times any k.
  const int32_t k = static_cast<int32_t>((x == x ? x : 0.0f) * 1.44269504f - 0.5f);
  const float r = (x - k * 0.693359375f) + k * 2.12194440e-4f;
  float sum = 1.0f / 720;
  sum = sum * r + 1.0f / 120;
  sum = sum * r + 1.0f / 24;
  sum = sum * r + 1.0f / 6;
  sum = sum * r + 0.5f;
  sum = sum * r + 1.0f;
  sum = sum * r + 1.0f;
  const int32_t bits = (k + 127) << 23;  // of 2^k
  float power;
  std::memcpy(&power, &bits, sizeof power);
  return sum * power;
}
MSDA_INLINE double exp_of_negative(double x) { return std::exp(x); }

}  // namespace msda
