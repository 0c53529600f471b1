// Device functions by themselves, for tests.
#include "ntt.cuh"

// out [7, count] from x, y [count], any words, modulo prime `limb`. One thread each.
FHE_KERNEL void probe_arithmetic(const Word *tables, const Word *x, const Word *y, Word *out, int limb) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x, count = gridDim.x * blockDim.x;
    const Word q = prime_of(tables, limb), a = x[i] % q, b = y[i] % q;
    const Pair w = {b, (Word)(((Sum)b << 32) / q)};
    const Sum limit = 2 * wide_product(q, q);
    out[i] = add_mod(a, b, q);
    out[count + i] = sub_mod(a, b, q);
    out[2 * count + i] = mul_mod(x[i], w, q);
    out[3 * count + i] = montgomery(wide_product(a, b), q, inverse_of(tables, limb));
    out[4 * count + i] = montgomery(accumulated(limit - 1, q - 1, q - 1, limit), q, inverse_of(tables, limb));
    out[5 * count + i] = reduced_twice(q < 1u << 30 ? x[i] % (4 * q) : x[i], q);
    out[6 * count + i] = mul_mod(0xFFFFFFFFu - x[i] % 8, w, q);
}

// Coefficients to SEAL-order values of one prime, or back, in place.
FHE_KERNEL void probe_transform(const Word *tables, Word *words, int limb, int back) {
    FHE_SHARED(Word, x);
    for (int i = threadIdx.x; i < N; i += THREADS) x[padded(i)] = words[i];
    if (back) {
        inverse(x, tables, limb);
    } else {
        forward(x, tables, limb);
    }
    for (int i = threadIdx.x; i < N; i += THREADS) words[i] = back ? divided(x[padded(i)], tables, limb) : x[padded(i)];
}

// Where word i of a rotation by k comes from.
FHE_KERNEL void probe_rotation(int *out, int k) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    out[i] = rotated_from(i, k);
}
