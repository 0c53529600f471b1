// Weights of linear plans to stored plaintexts, at start: `encoding.py` and `schedule.py` on the device.
#include "complex.cuh"
#include "ntt.cuh"

constexpr int BLOCK = 32;  // words of one plaintext that lie together (linear.py)
constexpr int LOG_HALF = RING_LOG - 1;

FHE_DEVICE int reversed(int k) {
    int r = 0;
    for (int bit = 0; bit < LOG_HALF; bit++) r |= (k >> bit & 1) << (LOG_HALF - 1 - bit);
    return r;
}

// What a slot holds: two weights as one complex number. `entry` is 2 (row columns + column) of the folded matrix, plus
// 1 where the slot's conjugate is wanted, or -1 for nothing.
FHE_DEVICE Complex folded_weight(const float *weights, int entry, int in_features, int out_features, int rows, int columns) {
    Complex z = {0.0, 0.0};
    if (entry < 0) return z;
    const int row = (entry >> 1) / columns, column = (entry >> 1) % columns;
    const float *at = weights + (size_t)row * in_features + column;
    z.real = *at;
    if (columns < in_features) {
        if (column + columns < in_features) z.imag = -(double)at[columns];
    } else if (row + rows < out_features) {
        z.imag = at[(size_t)rows * in_features];
    }
    if (entry & 1) z.imag = -z.imag;
    return z;
}

// Plaintext p of `words` [L, N / BLOCK, P, BLOCK], Montgomery form, from float32 weights [out, in]: `index` [P, N/2] says
// which weights the transform takes where, `scaling` is scale / (N/2). The host's operations (`encoding.py`) one by one.
// Grid (P), THREADS threads, 8 N bytes of shared memory: at N = 8192 these are 64 KB, which have to be asked for.
//
// N/4 log2 (N/2) complex butterflies (10 flops) and L modular transforms a plaintext; reads 2 N bytes of index and 4 N of
// weights at most, writes 4 L N: at N = 4096 and L = 2 0.1 M flops and 0.15 M multiplications for 57 KB, 2 to 3 a byte.
FHE_KERNEL void FHE_BLOCK(THREADS) encode_plaintexts(
    const Word *tables, const int *index, const Complex *roots, const Complex *twists, const double *scaling,
    const float *weights, Word *words, int in_features, int out_features, int rows, int columns
) {
    FHE_SHARED(Complex, z);
    const int p = blockIdx.x, count = gridDim.x;
    for (int s = threadIdx.x; s < HALF; s += THREADS) {
        z[s] = folded_weight(weights, index[(size_t)p * HALF + s], in_features, out_features, rows, columns);
    }
    for (int half = HALF / 2; half >= 1; half /= 2) {
        barrier();
        for (int i = threadIdx.x; i < HALF / 2; i += THREADS) {
            const int k = i % half, low = 2 * (i - k) + k;
            const Complex a = z[low], b = z[low + half], w = roots[k * (HALF / 2 / half)];
            const double x = minus(a.real, b.real), y = minus(a.imag, b.imag);
            z[low].real = plus(a.real, b.real);
            z[low].imag = plus(a.imag, b.imag);
            z[low + half].real = minus(times(x, w.real), times(y, w.imag));
            z[low + half].imag = plus(times(x, w.imag), times(y, w.real));
        }
    }
    barrier();
    double rounded[16];  // coefficients threadIdx.x + j THREADS
    FHE_UNROLL
    for (int j = 0; j < 8; j++) {
        const int k = threadIdx.x + j * THREADS;
        const Complex a = z[reversed(k)], w = twists[k];
        rounded[j] = nearest(times(minus(times(a.real, w.real), times(a.imag, w.imag)), scaling[0]));
        rounded[j + 8] = nearest(times(plus(times(a.real, w.imag), times(a.imag, w.real)), scaling[0]));
    }
    Word *x = (Word *)z;
    for (int limb = 0; limb < L; limb++) {
        const Word q = prime_of(tables, limb);
        const Pair unit = pair_at(tables, AT_MONTGOMERY + 2 * limb);
        barrier();
        FHE_UNROLL
        for (int j = 0; j < 16; j++) x[padded(threadIdx.x + j * THREADS)] = residue(rounded[j], q);
        forward(x, tables, limb);
        for (int s = threadIdx.x; s < N; s += THREADS) {
            const size_t at = (((size_t)limb * (N / BLOCK) + s / BLOCK) * count + p) * BLOCK + s % BLOCK;
            words[at] = mul_mod(x[padded(slot_order(tables)[s])], unit, q);
        }
    }
}
