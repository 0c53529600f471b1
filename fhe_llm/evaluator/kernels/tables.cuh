// Where the constants of a ring lie in the one array of words that every kernel takes (`cuda_tables.py` writes it).
#pragma once

#include "modular.cuh"

inline constexpr int MOST_PRIMES = 8;
inline constexpr int AT_PRIME = 0;                                   // [8] q
inline constexpr int AT_INVERSE = AT_PRIME + MOST_PRIMES;            // [8] 1/q mod 2^32
inline constexpr int AT_DEGREE = AT_INVERSE + MOST_PRIMES;           // [8] pairs: 1/N
inline constexpr int AT_SPECIAL = AT_DEGREE + 2 * MOST_PRIMES;       // [8] pairs: the special prime
inline constexpr int AT_MONTGOMERY = AT_SPECIAL + 2 * MOST_PRIMES;   // [8] pairs: 2^32
inline constexpr int AT_DROP = AT_MONTGOMERY + 2 * MOST_PRIMES;      // [8, 8] pairs: 1/q_dropped mod q
inline constexpr int AT_HALF = AT_DROP + 2 * MOST_PRIMES * MOST_PRIMES;  // [8, 8]: floor(q_dropped / 2) mod q
inline constexpr int AT_ORDER = AT_HALF + MOST_PRIMES * MOST_PRIMES;     // [N]: slot-order word s is SEAL-order word [s]
inline constexpr int AT_ROOTS = AT_ORDER + N;                        // [M, N] pairs: psi^rev(i)
inline constexpr int AT_INVERSE_ROOTS = AT_ROOTS + 2 * M * N;        // [M, N] pairs: psi^-rev(i)

FHE_DEVICE Word prime_of(const Word *tables, int limb) { return tables[AT_PRIME + limb]; }
FHE_DEVICE Word inverse_of(const Word *tables, int limb) { return tables[AT_INVERSE + limb]; }
FHE_DEVICE const Word *slot_order(const Word *tables) { return tables + AT_ORDER; }

// The pair at an even position.
FHE_DEVICE Pair pair_at(const Word *tables, int at) { return *(const Pair *)(tables + at); }

FHE_DEVICE Pair drop_inverse(const Word *tables, int dropped, int limb) {
    return pair_at(tables, AT_DROP + 2 * (dropped * MOST_PRIMES + limb));
}

FHE_DEVICE Word drop_half(const Word *tables, int dropped, int limb) {
    return tables[AT_HALF + dropped * MOST_PRIMES + limb];
}

// Word that a rotation by k slots, 0 <= k < N/2, brings to s: each half of the slot order turns by itself.
FHE_DEVICE int rotated_from(int s, int k) { return (s & HALF) | ((s + k) & (HALF - 1)); }

// A round is an array of addresses: the weights, the bits of their scale (packed plans), then for each job the keys
// [L, 2, M, N] of its baby and giant steps. Captured launches stay valid while what it holds changes.
inline constexpr int ROUND_HEAD = 2;

FHE_DEVICE const Word *key_of(const Sum *round, int job, int step, int steps) {
    return (const Word *)round[ROUND_HEAD + job * steps + step];
}
