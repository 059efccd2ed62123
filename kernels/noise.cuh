// Random numbers that follow from where they are used: the hash of src/ops/noise.rs, bit for bit. No kernel.
#pragma once
#include "common.cuh"

constexpr uint32_t STRIDE = 0x9e3779b9u;  // by which neighbouring columns are spread

// Wellons' lowbias32 (2018).
__device__ __forceinline__ uint32_t mix(uint32_t x) {
    x ^= x >> 16;
    x *= 0x7feb352du;
    x ^= x >> 15;
    x *= 0x846ca68bu;
    return x ^ x >> 16;
}

// What the numbers of a row follow from.
__device__ __forceinline__ uint32_t row_key(const StepParams* step, uint32_t site, uint32_t row) {
    return mix(mix(step->noise_key[0] ^ site * STRIDE) ^ step->noise_key[1] ^ row * 0x85ebca6bu);
}

// The number of a column: uniform over 32 bits.
__device__ __forceinline__ uint32_t number(uint32_t row_key, uint32_t column) { return mix(row_key + column * STRIDE); }

// A mask: which one, below what numbers it drops, by what it multiplies the others.
struct Dropout {
    uint32_t site, threshold;
    float factor;
    __device__ __forceinline__ float at(uint32_t row_key, uint32_t column) const {
        return number(row_key, column) >= threshold ? factor : 0.0f;
    }
    __device__ __forceinline__ bool keeps_all() const { return threshold == 0 && factor == 1.0f; }
};
static_assert(sizeof(Dropout) == 12, "Dropout differs from src/ops/linear_launch.rs");
