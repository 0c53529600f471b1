// Products of rotated inputs with stored weights: one pass over the weights for several jobs.
#include "tiles.cuh"

constexpr int BLOCK = 32;   // words of one plaintext that lie together (linear.py)

// For each job j, group g: sums[j, g] = sum over products p of the group of weights[p] * rotated[j, source[p]] / 2^32.
// The weights [L, N / BLOCK, P, BLOCK] in Montgomery form are `expanded` or, where it is null, at the address round[0]; `source` [P]; `bounds` [G + 1] offsets into
// P; `rotated` [J, S, 2, L, N]; `sums` [J, G, 2, L, N]. Grid (job tiles, L N / TILE, G / TEAMS), block (WARP, TEAMS):
// blocks that differ only in their jobs are neighbours, so a weight comes from memory once and then from the
// second-level cache; the warps of a block walk through the same inputs, which stay in the first-level cache.
//
// A weight of 4 bytes meets 2 inputs a job: 0.5 multiply-adds a byte for one job, bound by memory. An H100 could read
// 840 G weights a second at 3.35 TB/s; their products take an eighth of its multiplications (a quarter, should a sum of
// 64 bits cost two). From about 9 jobs (or 5) on bound by multiplication.
template <int JOBS>
FHE_DEVICE void multiply(
    const Word *tables, const Sum *round, const Word *expanded, const int *source, const int *bounds,
    const Word *rotated, Word *sums, int jobs, int sources, int groups, int count
) {
    const int limb = blockIdx.y / (N / TILE), first = blockIdx.y % (N / TILE) * TILE + 4 * threadIdx.x;
    const int g = blockIdx.z * TEAMS + threadIdx.y, job = blockIdx.x * JOBS;
    if (g >= groups) return;
    const Word q = prime_of(tables, limb), inverse = inverse_of(tables, limb);
    const Sum limit = 8 * wide_product(q, q);
    const Word *weights = (expanded ? expanded : (const Word *)round[0]) + ((size_t)limb * (N / BLOCK) + first / BLOCK) * count * BLOCK;
    [[maybe_unused]] constexpr int AHEAD = JOBS == 1 ? FOLD_EVERY : 2;  // loads under way, while registers last
    Sum total[JOBS][2][4] = {};
    for (int p0 = bounds[g]; p0 < bounds[g + 1]; p0 += FOLD_EVERY) {
        FHE_UNROLL
        for (int i = 0; i < 8 * JOBS; i++) {
            Sum &sum = total[i / 8][i / 4 % 2][i % 4];
            sum = folded(sum, limit);
        }
        const int last = p0 + FOLD_EVERY < bounds[g + 1] ? p0 + FOLD_EVERY : bounds[g + 1];
        FHE_UNROLL_BY(AHEAD)
        for (int p = p0; p < last; p++) {
            const Quad w = quad_at(weights, (size_t)p * BLOCK + first % BLOCK);
            FHE_UNROLL
            for (int j = 0; j < JOBS; j++) {
                if (job + j >= jobs) break;
                const size_t input = ((size_t)(job + j) * sources + source[p]) * 2;
                FHE_UNROLL
                for (int c = 0; c < 2; c++) {
                    const Quad x = quad_at(rotated, ((input + c) * L + limb) * N + first);
                    FHE_UNROLL
                    for (int e = 0; e < 4; e++) total[j][c][e] += wide_product(w.word[e], x.word[e]);
                }
            }
        }
    }
    FHE_UNROLL
    for (int j = 0; j < JOBS; j++) {
        if (job + j >= jobs) break;
        FHE_UNROLL
        for (int c = 0; c < 2; c++) {
            Quad out;
            FHE_UNROLL
            for (int e = 0; e < 4; e++) out.word[e] = montgomery(folded(total[j][c][e], limit), q, inverse);
            const size_t at = ((((size_t)(job + j) * groups + g) * 2 + c) * L + limb) * N + first;
            *(Quad *)(sums + at) = out;
        }
    }
}

#define FHE_MULTIPLY(JOBS)                                                                                        \
    FHE_KERNEL void FHE_BLOCK(WARP * TEAMS) multiply_##JOBS(                                                      \
        const Word *tables, const Sum *round, const Word *expanded, const int *source, const int *bounds,         \
        const Word *rotated, Word *sums, int jobs, int sources, int groups, int count, Sum *stamps                \
    ) {                                                                                                           \
        stamp(stamps, 1);                                                                                         \
        multiply<JOBS>(tables, round, expanded, source, bounds, rotated, sums, jobs, sources, groups, count);     \
    }

FHE_MULTIPLY(1)
FHE_MULTIPLY(2)
FHE_MULTIPLY(4)
