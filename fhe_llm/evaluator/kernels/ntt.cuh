// Number-theoretic transforms of one polynomial in shared memory by THREADS threads, sixteen words each.
//
// SEAL's order: the forward transform (Cooley-Tukey) takes coefficients in order to values in bit-reversed order, the
// inverse one (Gentleman-Sande) back. Four stages at a time stay in registers, so N = 4096 takes three passes over
// shared memory and N = 8192 four. Words lie padded (`padded`), one unused word after each sixteen, so that the strides of a
// pass fall on different banks. Every residue is below its prime: a prime of 31 bits leaves no room to be lazy.
//
// Cost of one transform: N/2 log2 N butterflies of 3 multiplications and 8 additions or comparisons; 2 N words of
// shared memory read and written a pass; N pairs of twiddles, which all blocks share in the caches. At N = 4096 these are
// 74 k multiplications, 1200 cycles of a multiprocessor that issues 64 a cycle.
#pragma once

#include "tables.cuh"

inline constexpr int SHARED_WORDS = N + N / 16;
inline constexpr int PASS = 4;                       // stages in registers
inline constexpr int FIRST = (RING_LOG - 1) % PASS + 1;  // stages of the first pass forward, of the last one back

FHE_DEVICE int padded(int i) { return i + (i >> 4); }

// S stages forward, the first of 2^log_nodes nodes. Each thread takes 16 / 2^S columns of 2^S words.
template <int S>
FHE_DEVICE void forward_pass(Word *x, const Word *roots, int log_nodes, Word q) {
    constexpr int SIZE = 1 << S;
    const int log_gap = RING_LOG - log_nodes - S, gap = 1 << log_gap, nodes = 1 << log_nodes;
    FHE_UNROLL
    for (int column = 0; column < 16 / SIZE; column++) {
        const int index = threadIdx.x + column * THREADS;
        const int node = index >> log_gap, first = (node << (log_gap + S)) + (index & (gap - 1));
        Word v[SIZE];
        FHE_UNROLL
        for (int k = 0; k < SIZE; k++) v[k] = x[padded(first + k * gap)];
        FHE_UNROLL
        for (int stage = 0; stage < S; stage++) {
            const int half = SIZE >> (stage + 1);
            FHE_UNROLL
            for (int i = 0; i < SIZE / 2; i++) {
                const int child = i / half, low = 2 * half * child + i % half;
                const Pair w = pair_at(roots, 2 * (((nodes + node) << stage) + child));
                const Word t = mul_mod(v[low + half], w, q), u = v[low];
                v[low] = add_mod(u, t, q);
                v[low + half] = sub_mod(u, t, q);
            }
        }
        FHE_UNROLL
        for (int k = 0; k < SIZE; k++) x[padded(first + k * gap)] = v[k];
    }
}

// The same stages backwards.
template <int S>
FHE_DEVICE void inverse_pass(Word *x, const Word *roots, int log_nodes, Word q) {
    constexpr int SIZE = 1 << S;
    const int log_gap = RING_LOG - log_nodes - S, gap = 1 << log_gap, nodes = 1 << log_nodes;
    FHE_UNROLL
    for (int column = 0; column < 16 / SIZE; column++) {
        const int index = threadIdx.x + column * THREADS;
        const int node = index >> log_gap, first = (node << (log_gap + S)) + (index & (gap - 1));
        Word v[SIZE];
        FHE_UNROLL
        for (int k = 0; k < SIZE; k++) v[k] = x[padded(first + k * gap)];
        FHE_UNROLL
        for (int stage = S - 1; stage >= 0; stage--) {
            const int half = SIZE >> (stage + 1);
            FHE_UNROLL
            for (int i = 0; i < SIZE / 2; i++) {
                const int child = i / half, low = 2 * half * child + i % half;
                const Pair w = pair_at(roots, 2 * (((nodes + node) << stage) + child));
                const Word u = v[low], t = v[low + half];
                v[low] = add_mod(u, t, q);
                v[low + half] = mul_mod(sub_mod(u, t, q), w, q);
            }
        }
        FHE_UNROLL
        for (int k = 0; k < SIZE; k++) x[padded(first + k * gap)] = v[k];
    }
}

// Coefficients to values modulo prime `limb`, in place. A barrier before it and one after it belong to it.
FHE_DEVICE void forward(Word *x, const Word *tables, int limb) {
    const Word *roots = tables + AT_ROOTS + 2 * limb * N;
    const Word q = prime_of(tables, limb);
    barrier();
    forward_pass<FIRST>(x, roots, 0, q);
    for (int log_nodes = FIRST; log_nodes < RING_LOG; log_nodes += PASS) {
        barrier();
        forward_pass<PASS>(x, roots, log_nodes, q);
    }
    barrier();
}

// Values to N times the coefficients, in place. A barrier before it and one after it belong to it.
FHE_DEVICE void inverse(Word *x, const Word *tables, int limb) {
    const Word *roots = tables + AT_INVERSE_ROOTS + 2 * limb * N;
    const Word q = prime_of(tables, limb);
    barrier();
    for (int log_nodes = RING_LOG - PASS; log_nodes >= FIRST; log_nodes -= PASS) {
        inverse_pass<PASS>(x, roots, log_nodes, q);
        barrier();
    }
    inverse_pass<FIRST>(x, roots, 0, q);
    barrier();
}

// A coefficient after `inverse`.
FHE_DEVICE Word divided(Word x, const Word *tables, int limb) {
    return mul_mod(x, pair_at(tables, AT_DEGREE + 2 * limb), prime_of(tables, limb));
}
