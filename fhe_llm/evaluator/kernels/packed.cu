// Packed plans: many tokens share a ciphertext, and weights become plaintext words in passing (`packed_encoding.py`, whose
// operations in floating point these kernels repeat one by one, so that both round alike).
#include "complex.cuh"
#include "tiles.cuh"

constexpr int LANES = 8;         // plaintexts of consecutive baby steps; two times eight share complex transforms
constexpr int ROWS = 4;          // rows of weights that share a load of the inputs

// Where the constants of a width G lie: leaf [G], pairs (twiddle, companion) [L, G], pairs (unit, minus_i) [L].
FHE_DEVICE int leaf_of(const int *packed, int g) { return packed[g]; }
FHE_DEVICE Pair twiddle_of(const int *packed, int width, int limb, int i) {
    return pair_at((const Word *)packed, width + 2 * (limb * width + i));
}
FHE_DEVICE Pair enter_of(const int *packed, int width, int limb) {
    return pair_at((const Word *)packed, width + 2 * (L * width + limb));
}

// One packed layer's weights, and the two columns and the row of plaintexts that a block makes.
struct Band {
    const float *weights;
    int out_features, in_features, width, babies, giants;
    int out, giant;

    // Entry g of the plaintext of (input, baby) number `column`: `band` in `packed_reference.py`.
    FHE_DEVICE_MEMBER double entry(int column, int g) const {
        const int source = column / babies, offset = giant + column % babies - width;
        const int row = out * width + g, j = g + offset, at = source * width + j;
        const bool inside = row < out_features && j >= 0 && j < width && at < in_features;
        return inside ? (double)weights[(size_t)row * in_features + at] : 0.0;
    }
};

// Values at the leaves to G times the remainder modulo Y^G - i, in place: G / 2 threads, the CPU's operations in its order.
FHE_DEVICE void leave_leaves(Complex *z, const Complex *turns, int width) {
    for (int nodes = width / 2, half = 1; nodes >= 1; nodes /= 2, half *= 2) {
        barrier();
        const int i = threadIdx.x / half, k = 2 * i * half + threadIdx.x % half;
        const Complex a = z[k], b = z[k + half], turn = turns[nodes + i];
        const double p = minus(a.real, b.real), r = minus(a.imag, b.imag);
        z[k].real = plus(a.real, b.real);
        z[k].imag = plus(a.imag, b.imag);
        z[k + half].real = plus(times(p, turn.real), times(r, turn.imag));
        z[k + half].imag = minus(times(r, turn.real), times(p, turn.imag));
    }
    barrier();
}

// Whole coefficients c_j and c_{G-j} of the two plaintexts that share a remainder.
struct Parted {
    double low[2], high[2];
};

FHE_DEVICE Parted part(const Complex *z, int j, int width, double factor) {
    const Complex a = z[j], b = z[j ? width - j : 0];
    Parted c;
    c.low[0] = nearest(times(j ? minus(a.real, b.imag) : times(a.real, 2.0), factor));
    c.low[1] = nearest(times(j ? plus(a.imag, b.real) : times(a.imag, 2.0), factor));
    c.high[0] = j ? nearest(times(minus(b.real, a.imag), factor)) : 0.0;
    c.high[1] = j ? nearest(times(plus(b.imag, a.real), factor)) : 0.0;
    return c;
}

// (c_j - i c_{G-j}) 2^32 modulo a prime at j, and the like at G - j, of both polynomials in `x` [2, G].
FHE_DEVICE void enter(Word *x, const Parted &c, int j, int width, Pair unit, Word q, Word inverse) {
    FHE_UNROLL
    for (int v = 0; v < 2; v++) {
        const Word low = residue(c.low[v], q), high = residue(c.high[v], q);
        const Sum there = wide_product(high, unit.value) + wide_product(low, unit.companion);
        const Sum here = wide_product(low, unit.value) + wide_product(high, unit.companion);
        x[v * width + (j ? width - j : 0)] = montgomery(there, q, inverse);
        x[v * width + j] = montgomery(here, q, inverse);
    }
}

// Remainders modulo Y^G - i of both polynomials in `x` [2, G] to words at the leaves, in place: G / 2 threads.
FHE_DEVICE void reach_leaves(Word *x, const int *packed, int limb, int width, Word q) {
    for (int nodes = 1, half = width / 2; half >= 1; nodes *= 2, half /= 2) {
        barrier();
        const int i = threadIdx.x / half, k = 2 * i * half + threadIdx.x % half;
        const Pair w = twiddle_of(packed, width, limb, nodes + i);
        for (Word *y = x; y <= x + width; y += width) {
            const Word u = y[k], t = mul_mod(y[k + half], w, q);
            y[k] = add_mod(u, t, q);
            y[k + half] = sub_mod(u, t, q);
        }
    }
    barrier();
}

// Rows `base` ... of plaintext words: `words` [rows, L, inner, G], Montgomery form. Row r stands for (output, giant step)
// number base + r, inner for (input, baby). Grid (8 ceil(inner / 16), rows), G / 2 threads: a block makes the plaintexts
// 16 i + l and 16 i + 8 + l with one complex transform. 16 G bytes of shared memory. The float32 weights [out, in] and the
// scale are in `round`.
//
// G/2 log2 G complex butterflies (10 flops) and L G log2 G modular ones a pair of plaintexts; reads 8 G bytes of weights,
// writes 8 L G. At G = 64: 2 k flops for 1.5 KB, about 1.3 flops a byte: bound by memory where doubles run at half speed,
// by arithmetic where they run at a 64th.
FHE_KERNEL void FHE_BLOCK(256) encode_rows(
    const Word *tables, const Sum *round, const int *packed, const Complex *turns, Word *words, const int *giant_steps,
    int giants, int babies, int width, int out_features, int in_features, int base
) {
    FHE_SHARED(Complex, z);
    const int inner = (in_features + width - 1) / width * babies, row = base + blockIdx.y;
    const int column = blockIdx.x / LANES * 2 * LANES + blockIdx.x % LANES, other = column + LANES;
    const Band band = {(const float *)round[0], out_features, in_features, width, babies, giants,
                       row / giants, giant_steps[row % giants]};
    for (int g = threadIdx.x; g < width; g += blockDim.x) {
        Complex &leaf = z[leaf_of(packed, (g + band.giant) & (width - 1))];
        leaf.real = band.entry(column, g);
        leaf.imag = other < inner ? band.entry(other, g) : 0.0;
    }
    leave_leaves(z, turns, width);
    const double factor = times(0.5, as_double(round[1]) / width);
    const Parted own = part(z, threadIdx.x, width, factor), middle = part(z, width / 2, width, factor);
    Word *x = (Word *)z;
    for (int limb = 0; limb < L; limb++) {
        const Word q = prime_of(tables, limb), inverse = inverse_of(tables, limb);
        const Pair unit = enter_of(packed, width, limb);
        barrier();  // everybody has what it needs of z, or has written its words
        enter(x, own, threadIdx.x, width, unit, q, inverse);
        if (threadIdx.x == 0) enter(x, middle, width / 2, width, unit, q, inverse);
        reach_leaves(x, packed, limb, width, q);
        Word *target = words + ((size_t)blockIdx.y * L + limb) * inner * width;
        for (int g = threadIdx.x; g < width; g += blockDim.x) {
            const int at = leaf_of(packed, g);
            target[(size_t)column * width + g] = x[at];
            if (other < inner) target[(size_t)other * width + g] = x[width + at];
        }
    }
}

// sums[j, base + r] = sum over inner of words[r, inner] * rotated[j, inner] / 2^32 for the rows r of one chunk:
// `words` [rows, L, inner, G] repeat with period G along the slots, `rotated` [J, inner, 2, L, N], `sums` [J, R, 2, L, N].
// Grid (L N / TILE, ceil(rows / (ROWS TEAMS)), J), block (WARP, TEAMS): a warp takes ROWS rows of 128 words.
//
// 8 ROWS multiply-adds of 64 bits for ROWS + 2 loads of sixteen bytes: 0.33 a byte of the first-level cache at ROWS = 4, bound by
// multiplication and that cache about equally. From memory come 4 L G inner bytes a row once, the inputs once a chunk.
FHE_KERNEL void FHE_BLOCK(WARP * TEAMS) multiply_rows(
    const Word *tables, const Word *words, const Word *rotated, Word *sums, int rows, int all_rows, int base,
    int inner, int width, Sum *stamps
) {
    if (base == 0) stamp(stamps, 1);
    const int limb = blockIdx.x / (N / TILE), first = blockIdx.x % (N / TILE) * TILE + 4 * threadIdx.x;
    const int row = (blockIdx.y * TEAMS + threadIdx.y) * ROWS, job = blockIdx.z;
    if (row >= rows) return;
    const Word q = prime_of(tables, limb), inverse = inverse_of(tables, limb);
    const Sum limit = 8 * wide_product(q, q);
    const size_t stride = (size_t)L * inner * width;  // of a row of words
    const Word *weights = words + row * stride + (size_t)limb * inner * width + (first & (width - 1));
    const Word *inputs = rotated + ((size_t)job * inner * 2 * L + limb) * N + first;
    Sum total[ROWS][2][4] = {};
    for (int p0 = 0; p0 < inner; p0 += FOLD_EVERY) {
        FHE_UNROLL
        for (int i = 0; i < 8 * ROWS; i++) {
            Sum &sum = total[i / 8][i / 4 % 2][i % 4];
            sum = folded(sum, limit);
        }
        const int last = p0 + FOLD_EVERY < inner ? p0 + FOLD_EVERY : inner;
        for (int p = p0; p < last; p++) {
            Quad x[2];
            FHE_UNROLL
            for (int c = 0; c < 2; c++) x[c] = quad_at(inputs, ((size_t)p * 2 + c) * L * N);
            FHE_UNROLL
            for (int r = 0; r < ROWS; r++) {
                if (row + r >= rows) break;
                const Quad w = quad_at(weights, r * stride + (size_t)p * width);
                FHE_UNROLL
                for (int i = 0; i < 8; i++) total[r][i / 4][i % 4] += wide_product(w.word[i % 4], x[i / 4].word[i % 4]);
            }
        }
    }
    FHE_UNROLL
    for (int r = 0; r < ROWS; r++) {
        if (row + r >= rows) break;
        FHE_UNROLL
        for (int c = 0; c < 2; c++) {
            Quad out;
            FHE_UNROLL
            for (int e = 0; e < 4; e++) out.word[e] = montgomery(folded(total[r][c][e], limit), q, inverse);
            const size_t at = ((((size_t)job * all_rows + base + row + r) * 2 + c) * L + limb) * N + first;
            *(Quad *)(sums + at) = out;
        }
    }
}
