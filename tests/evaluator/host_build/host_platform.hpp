// The host's stand-in for a GPU: every thread of a block is a fiber, and the fibers run one after another from barrier
// to barrier, in ascending or descending order. A missing barrier shows as a result that depends on the order.
#pragma once

#include <stddef.h>
#include <math.h>
#include <string.h>

#define FHE_KERNEL extern "C"
#define FHE_DEVICE static inline __attribute__((unused))
#define FHE_DEVICE_MEMBER
#define FHE_BLOCK(threads)
#define FHE_UNROLL
#define FHE_UNROLL_BY(times)
#define FHE_SHARED(type, name) type *name = (type *)host_shared

struct Index3 {
    unsigned int x, y, z;
};

extern thread_local Index3 threadIdx, blockIdx, blockDim, gridDim;
extern thread_local unsigned char *host_shared;

void barrier();                          // gives the block's other fibers their turn
unsigned long long nanoseconds();

static inline unsigned int high_product(unsigned int x, unsigned int y) {
    return (unsigned int)(((unsigned long long)x * y) >> 32);
}
static inline unsigned long long wide_product(unsigned int x, unsigned int y) { return (unsigned long long)x * y; }
static inline double plus(double x, double y) { return x + y; }
static inline double times(double x, double y) { return x * y; }
static inline double as_double(unsigned long long bits) {
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}
static inline double nearest(double x) { return rint(x); }
