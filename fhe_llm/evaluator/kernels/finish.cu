// The end of an evaluation: leave the NTT domain, divide by the special prime, rescale. Response trimming is what the
// last kernel does: of L + 1 limbs only REPLY_LIMBS leave the device.
#include "ntt.cuh"

// Slot-order values to coefficients, in place: `totals` [.., M, N]. Grid (M, polynomials), THREADS threads,
// 4 SHARED_WORDS bytes of shared memory. One transform and 8 N bytes a block, 2.2 multiplications a byte of what
// `turn_sums` has just left in the second-level cache: bound by multiplication.
FHE_KERNEL void FHE_BLOCK(THREADS) leave_slots(const Word *tables, Word *totals) {
    FHE_SHARED(Word, x);
    const int limb = blockIdx.x;
    Word *words = totals + ((size_t)blockIdx.y * M + limb) * N;
    for (int s = threadIdx.x; s < N; s += THREADS) x[padded(slot_order(tables)[s])] = words[s];
    inverse(x, tables, limb);
    for (int i = threadIdx.x; i < N; i += THREADS) words[i] = divided(x[padded(i)], tables, limb);
}

// Coefficients [polynomials, M, N] to replies [polynomials, REPLY_LIMBS, N]: divide by the last prime with rounding until
// REPLY_LIMBS are left (SEAL's ``rescale_to_next``). Grid (N / 256, polynomials), 256 threads, a coefficient each.
//
// 3 multiplications for each limb that is left after each division, and 4 (M + REPLY_LIMBS) bytes: 9 for 16 bytes at
// M = 3, bound by memory (the second-level cache's).
FHE_KERNEL void FHE_BLOCK(256) rescale(const Word *tables, const Word *totals, Word *replies, Sum *stamps) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    const Word *coefficient = totals + (size_t)blockIdx.y * M * N + i;
    Word value[M];
    FHE_UNROLL
    for (int limb = 0; limb < M; limb++) value[limb] = coefficient[limb * N];
    FHE_UNROLL
    for (int dropped = M - 1; dropped >= REPLY_LIMBS; dropped--) {
        const Word x = add_mod(value[dropped], drop_half(tables, dropped, dropped), prime_of(tables, dropped));
        FHE_UNROLL
        for (int limb = 0; limb < dropped; limb++) {
            const Word q = prime_of(tables, limb);
            const Word u = sub_mod(reduced_twice(x, q), drop_half(tables, dropped, limb), q);
            value[limb] = mul_mod(sub_mod(value[limb], u, q), drop_inverse(tables, dropped, limb), q);
        }
    }
    FHE_UNROLL
    for (int limb = 0; limb < REPLY_LIMBS; limb++) {
        replies[((size_t)blockIdx.y * REPLY_LIMBS + limb) * N + i] = value[limb];
    }
    stamp(stamps, 3);
}
