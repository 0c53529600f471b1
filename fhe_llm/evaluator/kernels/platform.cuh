// What the kernels need from their platform. NVRTC brings all of it along; tests build the same sources for the host,
// where `host_platform.hpp` runs a block's threads one after another between two barriers.
//
// A module is compiled for one preset: RING_LOG (log2 N), LIMBS (data primes L) and REPLY_LIMBS are given as macros.
#pragma once

#if defined(__CUDACC__)
#define FHE_KERNEL extern "C" __global__
#define FHE_DEVICE __device__ __forceinline__
#define FHE_DEVICE_MEMBER __device__ __forceinline__
#define FHE_BLOCK(threads) __launch_bounds__(threads)  // the most a block has: registers must last for them
#define FHE_UNROLL _Pragma("unroll")
#define FHE_UNROLL_BY(times) FHE_PRAGMA(unroll times)
#define FHE_PRAGMA(text) _Pragma(#text)
#else
#include "host_platform.hpp"
#endif

typedef unsigned int Word;        // a residue below its prime, unless said otherwise
typedef unsigned long long Sum;   // a sum of products of words

inline constexpr int N = 1 << RING_LOG;
inline constexpr int HALF = N / 2;          // slots
inline constexpr int L = LIMBS;             // data primes
inline constexpr int M = LIMBS + 1;         // with the special one, the last
inline constexpr int THREADS = N / 16;      // of a block that transforms: sixteen words each

#if defined(__CUDACC__)
FHE_DEVICE Word high_product(Word x, Word y) { return __umulhi(x, y); }
FHE_DEVICE Sum wide_product(Word x, Word y) { return (Sum)x * y; }
FHE_DEVICE double plus(double x, double y) { return __dadd_rn(x, y); }  // never contracted to one rounding
FHE_DEVICE double times(double x, double y) { return __dmul_rn(x, y); }
FHE_DEVICE double nearest(double x) { return rint(x); }
FHE_DEVICE double as_double(Sum bits) { return __longlong_as_double((long long)bits); }
FHE_DEVICE void barrier() { __syncthreads(); }

// Dynamic shared memory; every kernel says in its launch how much it takes.
#define FHE_SHARED(type, name) extern __shared__ type name[]

// Nanoseconds of a clock that all multiprocessors share.
FHE_DEVICE Sum nanoseconds() {
    Sum now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    return now;
}
#endif

FHE_DEVICE double minus(double x, double y) { return plus(x, -y); }

// Note when a phase began; `stamps` has one entry a phase.
FHE_DEVICE void stamp(Sum *stamps, int phase) {
    if (blockIdx.x == 0 && blockIdx.y == 0 && blockIdx.z == 0 && threadIdx.x == 0 && threadIdx.y == 0) {
        stamps[phase] = nanoseconds();
    }
}
