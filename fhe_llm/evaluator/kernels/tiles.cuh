// How kernels that sum cover a limb: a warp takes 128 words, and a block has eight warps.
#pragma once

#include "tables.cuh"

inline constexpr int WARP = 32;
inline constexpr int TEAMS = 8;         // warps of a block
inline constexpr int TILE = 4 * WARP;   // words of a limb that a warp takes
inline constexpr int FOLD_EVERY = 8;    // products below q^2 < 2^60 that join a sum below 8 q^2 before it is folded

struct alignas(16) Quad {  // one load of sixteen bytes
    Word word[4];
};

FHE_DEVICE Quad quad_at(const Word *words, size_t at) { return *(const Quad *)(words + at); }
