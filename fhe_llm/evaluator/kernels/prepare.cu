// What is brought into the form the other kernels read, once or in passing: keys and weights.
#include "ntt.cuh"

// Keys in SEAL's order to slot order and Montgomery form, `words` and `prepared` [polynomials, M, N]. Grid (N / 256,
// M, polynomials), 256 threads, a word each. 3 multiplications and 8 bytes a word: bound by memory.
FHE_KERNEL void FHE_BLOCK(256) prepare_keys(const Word *tables, const Word *words, Word *prepared) {
    const int s = blockIdx.x * blockDim.x + threadIdx.x, limb = blockIdx.y;
    const size_t row = ((size_t)blockIdx.z * M + limb) * N;
    const Pair unit = pair_at(tables, AT_MONTGOMERY + 2 * limb);
    prepared[row + s] = mul_mod(words[row + slot_order(tables)[s]], unit, prime_of(tables, limb));
}

constexpr int BLOCK = 32;  // words of one plaintext that lie together (linear.py)

// Where word s of plaintext p of `count` is stored.
FHE_DEVICE size_t stored_at(int limb, int s, int p, int count) {
    return (((size_t)limb * (N / BLOCK) + s / BLOCK) * count + p) * BLOCK + s % BLOCK;
}

// Stored weights [L, N / BLOCK, P, BLOCK] to the coefficients they came from, `compact` [P, N]: half the bytes of two limbs.
// Grid (P), THREADS threads, 4 SHARED_WORDS bytes of shared memory; L inverse transforms a plaintext. `failed` becomes 1
// where a coefficient is not below half of every prime in magnitude.
FHE_KERNEL void FHE_BLOCK(THREADS) compact_weights(const Word *tables, const Word *words, int *compact, int *failed) {
    FHE_SHARED(Word, x);
    const int p = blockIdx.x, count = gridDim.x;
    for (int limb = 0; limb < L; limb++) {
        const Word q = prime_of(tables, limb);
        barrier();
        for (int s = threadIdx.x; s < N; s += THREADS) {
            const Word value = montgomery(words[stored_at(limb, s, p, count)], q, inverse_of(tables, limb));
            x[padded(slot_order(tables)[s])] = value;
        }
        inverse(x, tables, limb);
        for (int i = threadIdx.x; i < N; i += THREADS) {
            const Word y = divided(x[padded(i)], tables, limb);
            const int centred = y > q / 2 ? (int)(y - q) : (int)y;
            if (limb == 0) compact[(size_t)p * N + i] = centred;
            if (compact[(size_t)p * N + i] != centred) *failed = 1;
        }
    }
}

// The way back, for one evaluation: coefficients at the address round[0] to `words`. Grid (P, L), THREADS threads,
// 4 SHARED_WORDS bytes of shared memory; a forward transform a block for 8 N bytes, 2.2 multiplications a byte: bound by
// memory on an H100, by multiplication on devices with less than half of its bandwidth for each of them.
FHE_KERNEL void FHE_BLOCK(THREADS) expand_weights(const Word *tables, const Sum *round, Word *words) {
    FHE_SHARED(Word, x);
    const int p = blockIdx.x, count = gridDim.x, limb = blockIdx.y;
    const int *compact = (const int *)round[0] + (size_t)p * N;
    const Word q = prime_of(tables, limb);
    const Pair unit = pair_at(tables, AT_MONTGOMERY + 2 * limb);
    for (int i = threadIdx.x; i < N; i += THREADS) {
        x[padded(i)] = (Word)compact[i] + (compact[i] < 0 ? q : 0);
    }
    forward(x, tables, limb);
    for (int s = threadIdx.x; s < N; s += THREADS) {
        words[stored_at(limb, s, p, count)] = mul_mod(x[padded(slot_order(tables)[s])], unit, q);
    }
}
