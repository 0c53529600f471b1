// Arithmetic modulo primes below 2^31 in 32-bit words. Results are below the prime, unless said otherwise.
//
// Constants that are multiplied with come with their Shoup companion floor(2^32 w / q) (`Pair`); stored operands, weights
// and keys, come in Montgomery form (times 2^32), so that one reduction ends a sum of many products.
#pragma once

#include "platform.cuh"

struct alignas(8) Pair {  // one load of eight bytes
    Word value;
    Word companion;
};

// x below 2 q to x below q.
FHE_DEVICE Word reduced(Word x, Word q) {
    Word r = x - q;
    return r < x ? r : x;
}

// x below 4 q, or any word where 4 q passes 2^32, to x below q. Needs q < 2^31.
FHE_DEVICE Word reduced_twice(Word x, Word q) { return reduced(reduced(x, 2 * q), q); }

FHE_DEVICE Word add_mod(Word x, Word y, Word q) { return reduced(x + y, q); }

FHE_DEVICE Word sub_mod(Word x, Word y, Word q) {
    Word r = x - y, s = r + q;
    return s < r ? s : r;
}

// x w mod q for any word x: three multiplications. The estimate of the quotient is off by at most one.
FHE_DEVICE Word mul_mod(Word x, Pair w, Word q) {
    return reduced(x * w.value - high_product(x, w.companion) * q, q);
}

// A 64-bit sum below 2 `limit` to one below `limit`.
FHE_DEVICE Sum folded(Sum total, Sum limit) {
    Sum r = total - limit;
    return r < total ? r : total;
}

// total + x k for total below 2 q^2, again below 2 q^2.
FHE_DEVICE Sum accumulated(Sum total, Word x, Word k, Sum limit) {
    return folded(total + wide_product(x, k), limit);
}

// total / 2^32 mod q for total below 2^32 * 2 q (Montgomery); `inverse` is 1/q mod 2^32.
FHE_DEVICE Word montgomery(Sum total, Word q, Word inverse) {
    Word high = reduced((Word)(total >> 32), q);
    return sub_mod(high, high_product((Word)total * inverse, q), q);
}
