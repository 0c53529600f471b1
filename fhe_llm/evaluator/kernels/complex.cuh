// Weights before they are words: complex numbers in doubles, every operation rounded by itself.
#pragma once

#include "tables.cuh"

struct alignas(16) Complex {
    double real, imag;
};

// Whole number below 2^51 in magnitude modulo q.
FHE_DEVICE Word residue(double x, double modulus) {
    const int r = (int)minus(x, times(nearest(times(x, 1.0 / modulus)), modulus));
    return (Word)r + (r < 0 ? (Word)modulus : 0);
}
