// Key switching: decompose, multiply with a Galois key, divide by the special prime. One block transforms one
// polynomial in shared memory (4 SHARED_WORDS bytes: 17 KB at N = 4096, 34 KB at N = 8192), THREADS threads.
//
// Shapes: inputs I = jobs J * `inputs` (ciphertexts a job), babies B, groups G; digits [.., L, M, N] without the
// digits' own limbs, which are where they came from; steps are the B baby and G giant ones. Slot order everywhere but in
// `inputs`.
#include "ntt.cuh"
#include "tiles.cuh"

// Block x of L * L: which digit it extends to which other prime.
struct Extension {
    int digit, limb;
};

FHE_DEVICE Extension extension(int x) {
    Extension e = {x / L, x % L};
    e.limb += e.limb >= e.digit;
    return e;
}

// Shared x, values modulo prime e.digit in SEAL's order, to values modulo prime e.limb in `target` [N]. The residue is
// lifted to -q/2 ... q/2 where `centred` (hoisted rotations), else to 0 ... q - 1 (as SEAL does).
FHE_DEVICE void extend(Word *x, const Word *tables, Extension e, bool centred, Word *target) {
    const Word from = prime_of(tables, e.digit), q = prime_of(tables, e.limb);
    inverse(x, tables, e.digit);
    for (int i = threadIdx.x; i < N; i += THREADS) {
        const Word y = divided(x[padded(i)], tables, e.digit);
        x[padded(i)] = reduced_twice(centred && y > from / 2 ? y + (q - from) : y, q);
    }
    forward(x, tables, e.limb);
    for (int s = threadIdx.x; s < N; s += THREADS) target[s] = x[padded(slot_order(tables)[s])];
}

// Decompose the inputs [I, 2, L, N] (SEAL's order) into `digits` [I, L, M, N], and put them in slot order at baby 0 of
// `rotated` [I, B, 2, L, N]. Grid (L L + L, I); the first L L blocks of a row make digits and end at once where B = 1.
//
// L^2 inverse and L^2 forward transforms an input: each extension repeats its digit's inverse transform, so that a
// block has two transforms to wait for instead of 1 + L. Reads 4 N L (L + 2) bytes and writes as many. At N = 4096 an
// extension is 147 k multiplications for 32 KB, 4.5 a byte: as many as an H100 has for each byte of its memory, and more
// than it has for a byte of its second-level cache, where most of these are. Bound by multiplication.
FHE_KERNEL void FHE_BLOCK(THREADS) place_inputs(
    const Word *tables, const Word *inputs, Word *rotated, Word *digits, int babies, Sum *stamps
) {
    FHE_SHARED(Word, x);
    stamp(stamps, 0);
    const int i = blockIdx.y;
    const Word *input = inputs + (size_t)i * 2 * L * N;
    if (blockIdx.x >= L * L) {
        const int limb = blockIdx.x - L * L;
        Word *plain = rotated + (size_t)i * babies * 2 * L * N;
        for (int s = threadIdx.x; s < N; s += THREADS) {
            const int from = slot_order(tables)[s];
            plain[limb * N + s] = input[limb * N + from];
            plain[(L + limb) * N + s] = input[(L + limb) * N + from];
        }
        return;
    }
    if (babies == 1) return;
    const Extension e = extension(blockIdx.x);
    const Word *source = input + (L + e.digit) * N;
    for (int s = threadIdx.x; s < N; s += THREADS) x[padded(s)] = source[s];
    extend(x, tables, e, true, digits + (((size_t)i * L + e.digit) * M + e.limb) * N);
}

// One word of the product of a decomposed polynomial and one component of a key, both turned into place: digit d's
// word modulo prime `limb` comes from `own` [L, N] where d is the limb and from `digits` [L, M, N] elsewhere.
FHE_DEVICE Word switched_word(
    const Word *tables, const Word *own, const Word *digits, const Word *key, int component, int limb, int s, int from
) {
    const Word q = prime_of(tables, limb);
    const Sum limit = 2 * wide_product(q, q);
    Sum total = 0;
    FHE_UNROLL
    for (int d = 0; d < L; d++) {
        const Word word = d == limb ? own[d * N + from] : digits[(d * M + limb) * N + from];
        total = accumulated(total, word, key[((2 * d + component) * M + limb) * N + s], limit);
    }
    return montgomery(total, q, inverse_of(tables, limb));
}

// Hoisted rotations of every input by 1 ... B - 1: fused inner product with the key, division by the special prime,
// and addition of the turned first component. Grid (2 (B - 1), I, slices); a block serves `limbs` data limbs of one
// component and repeats the inverse transform of the special limb for them: more slices, more blocks, less waiting.
//
// A slice: 1 inverse and `limbs` forward transforms, L (1 + limbs) N products. Reads 8 N L (1 + limbs) bytes, half of
// them keys, and 4 N limbs more for the first component; writes 4 N limbs. At N = 4096, L = limbs = 2: 0.3 M
// multiplications for 0.23 MB, 1.3 a byte, but 3 a byte of keys, which alone come from memory: an H100 has 4.5 a byte
// of memory. Bound by memory there for clients whose keys are not in the second-level cache, otherwise by multiplication.
FHE_KERNEL void FHE_BLOCK(THREADS) rotate_babies(
    const Word *tables, const Sum *round, const Word *digits, Word *rotated, int inputs, int babies, int steps, int limbs
) {
    FHE_SHARED(Word, x);
    const int k = blockIdx.x / 2 + 1, component = blockIdx.x % 2, i = blockIdx.y;
    const Word *order = slot_order(tables), *key = key_of(round, i / inputs, k, steps);
    const Word *plain = rotated + (size_t)i * babies * 2 * L * N, *own = plain + L * N;
    const Word *extended = digits + (size_t)i * L * M * N;
    const int special = M - 1;
    for (int s = threadIdx.x; s < N; s += THREADS) {
        x[padded(order[s])] =
            switched_word(tables, own, extended, key, component, special, s, rotated_from(s, k));
    }
    inverse(x, tables, special);
    Word lifted[16];  // modulo the special prime, plus half of it
    FHE_UNROLL
    for (int j = 0; j < 16; j++) {
        const Word y = divided(x[padded(threadIdx.x + j * THREADS)], tables, special);
        lifted[j] = add_mod(y, drop_half(tables, special, special), prime_of(tables, special));
    }
    for (int slice = 0; slice < limbs; slice++) {
        const int limb = blockIdx.z * limbs + slice;
        const Word q = prime_of(tables, limb), shift = q - drop_half(tables, special, limb);
        barrier();  // the words of the limb before are read
        FHE_UNROLL
        for (int j = 0; j < 16; j++) x[padded(threadIdx.x + j * THREADS)] = reduced_twice(lifted[j] + shift, q);
        forward(x, tables, limb);
        Word *target = rotated + ((((size_t)i * babies + k) * 2 + component) * L + limb) * N;
        for (int s = threadIdx.x; s < N; s += THREADS) {
            const int from = rotated_from(s, k);
            const Word whole = switched_word(tables, own, extended, key, component, limb, s, from);
            const Word quotient =
                mul_mod(sub_mod(whole, x[padded(order[s])], q), drop_inverse(tables, special, limb), q);
            target[s] = component ? quotient : add_mod(quotient, plain[limb * N + from], q);
        }
    }
}

// Turn the second components of the groups' sums [J, G, 2, L, N] by their giant steps and decompose them into `digits`
// [J, G, L, M, N]. Grid (L L, G, J). Turning first and lifting to 0 ... q - 1 is SEAL's way.
//
// L^2 inverse and L^2 forward transforms a group that turns. Reads 4 N L^2 bytes and writes as many: 4.5 multiplications
// a byte, bound by multiplication.
FHE_KERNEL void FHE_BLOCK(THREADS) decompose_sums(
    const Word *tables, const Word *sums, const int *giant, Word *digits, int groups, Sum *stamps
) {
    FHE_SHARED(Word, x);
    stamp(stamps, 2);
    const int k = giant[blockIdx.y];
    if (k == 0) return;
    const size_t group = (size_t)blockIdx.z * groups + blockIdx.y;
    const Extension e = extension(blockIdx.x);
    const Word *source = sums + ((group * 2 + 1) * L + e.digit) * N;
    for (int s = threadIdx.x; s < N; s += THREADS) x[padded(slot_order(tables)[s])] = source[rotated_from(s, k)];
    extend(x, tables, e, false, digits + ((group * L + e.digit) * M + e.limb) * N);
}

// The turned sums of one output, times the special prime and before division by it: `totals` [J, O, 2, M, N] is the sum
// over the output's groups of (digits times key) plus the special prime times what needs no key. Grid (M N / TILE, O, J),
// block (WARP, TEAMS): each warp takes every eighth group, then they add up in 2 TILE TEAMS words of shared memory.
//
// 2 L products a word and group. Reads 4 (3 L + 1) bytes a word and group: 0.14 multiplications a byte, bound by
// memory (keys stream once, digits come from the second-level cache).
FHE_KERNEL void FHE_BLOCK(WARP * TEAMS) turn_sums(
    const Word *tables, const Sum *round, const Word *sums, const Word *digits, const int *giant, Word *totals,
    int babies, int groups
) {
    FHE_SHARED(Word, shared);
    const int limb = blockIdx.x / (N / TILE), first = blockIdx.x % (N / TILE) * TILE;
    const int output = blockIdx.y, outputs = gridDim.y, job = blockIdx.z, each = groups / outputs;
    const Word q = prime_of(tables, limb);
    Word direct[2][4] = {};
    Sum total[2][4] = {};
    for (int g = output * each + threadIdx.y; g < (output + 1) * each; g += TEAMS) {
        const int k = giant[g];
        const size_t group = (size_t)job * groups + g;
        const Word *sum = sums + group * 2 * L * N;
        const Word *key = k ? key_of(round, job, babies + g, babies + groups) : nullptr;
        FHE_UNROLL
        for (int e = 0; e < 4; e++) {
            const int s = first + e * WARP + threadIdx.x, from = rotated_from(s, k);
            if (limb < L) {
                direct[0][e] = add_mod(direct[0][e], sum[limb * N + from], q);
                if (k == 0) direct[1][e] = add_mod(direct[1][e], sum[(L + limb) * N + from], q);
            }
            if (k == 0) continue;
            FHE_UNROLL
            for (int d = 0; d < L; d++) {
                // the digit's own limb is not turned yet, the others are
                const Word word = d == limb ? sum[(L + d) * N + from] : digits[((group * L + d) * M + limb) * N + s];
                FHE_UNROLL
                for (int c = 0; c < 2; c++) {
                    const Word k_word = key[((2 * d + c) * M + limb) * N + s];
                    total[c][e] = accumulated(total[c][e], word, k_word, 2 * wide_product(q, q));
                }
            }
        }
    }
    FHE_UNROLL
    for (int c = 0; c < 2; c++) {
        FHE_UNROLL
        for (int e = 0; e < 4; e++) {
            Word value = montgomery(total[c][e], q, inverse_of(tables, limb));
            if (limb < L) value = add_mod(value, mul_mod(direct[c][e], pair_at(tables, AT_SPECIAL + 2 * limb), q), q);
            shared[(threadIdx.y * 2 + c) * TILE + e * WARP + threadIdx.x] = value;
        }
    }
    barrier();
    const int flat = threadIdx.y * WARP + threadIdx.x;  // 2 TILE threads: one word of one component each
    Word value = 0;
    for (int team = 0; team < TEAMS; team++) value = add_mod(value, shared[team * 2 * TILE + flat], q);
    totals[((((size_t)job * outputs + output) * 2 + flat / TILE) * M + limb) * N + first + flat % TILE] = value;
}
