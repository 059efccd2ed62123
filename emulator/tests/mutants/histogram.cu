// How often each of 64 values occurs: a sample for the mutants, of producers and consumers with named barriers.
//
// Shapes     x [n] u32, all less than 64; parts [blocks, 64] u32; bins [64] u32.
// Mapping    histogram_parts: two warps read chunks of 64 into a ring of two, two warps count them; a barrier per
//            place of the ring says that it is full, another that it is empty; one more is the consumers' own.
//            histogram_finish: one block of 64 threads adds the parts.
#include "common.cuh"

constexpr uint32_t HALF = 64, BINS = 64, PLACES = 2;  // threads that produce, and that consume
constexpr uint32_t FULL = 1, EMPTY = FULL + PLACES, CONSUMERS = EMPTY + PLACES;

__device__ __forceinline__ void arrive(uint32_t barrier) {
    asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "n"(2 * HALF) : "memory");
}

__device__ __forceinline__ void meet(uint32_t barrier) {
    asm volatile("bar.sync %0, %1;" ::"r"(barrier), "n"(2 * HALF) : "memory");
}

__device__ __forceinline__ void meet_consumers() {
    asm volatile("bar.sync %0, %1;" ::"n"(CONSUMERS), "n"(HALF) : "memory");
}

extern "C" __global__ void __launch_bounds__(2 * HALF)
histogram_parts(const uint32_t* __restrict__ x, uint32_t n, uint32_t* __restrict__ parts) {
    __shared__ uint32_t ring[PLACES][HALF], bins[BINS];
    const uint32_t t = threadIdx.x % HALF;
    const uint32_t chunks = (n + HALF - 1) / HALF;
    if (threadIdx.x < HALF) {
#pragma unroll 1
        for (uint32_t chunk = blockIdx.x, turn = 0; chunk < chunks; chunk += gridDim.x, ++turn) {
            const uint32_t i = chunk * HALF + t;
            const uint32_t value = i < n ? x[i] : BINS;
            if (turn >= PLACES) meet(EMPTY + turn % PLACES);
            ring[turn % PLACES][t] = value;
            arrive(FULL + turn % PLACES);
        }
        return;
    }
    bins[t] = 0;  // the first barrier below makes all see it
#pragma unroll 1
    for (uint32_t chunk = blockIdx.x, turn = 0; chunk < chunks; chunk += gridDim.x, ++turn) {
        meet(FULL + turn % PLACES);
        // The other warp's values, lest a barrier of too few threads do.
        const uint32_t value = ring[turn % PLACES][HALF - 1 - t];
        if (chunk + PLACES * gridDim.x < chunks) arrive(EMPTY + turn % PLACES);
        if (value < BINS) atomicAdd(&bins[value], 1);
    }
    meet_consumers();
    parts[blockIdx.x * BINS + t] = bins[BINS - 1 - t];
}

extern "C" __global__ void __launch_bounds__(BINS)
histogram_finish(const uint32_t* parts, uint32_t blocks, uint32_t* bins) {
    uint32_t sum = 0;
#pragma unroll 1
    for (uint32_t b = 0; b < blocks; ++b) sum += parts[b * BINS + threadIdx.x];
    bins[BINS - 1 - threadIdx.x] = sum;
}
