// Softmax of rows to the base 2, and how many elements of each lie above a floor: a sample for the mutants, of what
// reductions of a block go wrong with.
//
//   y[t,c] = 2^(x[t,c] - max_c x[t,c]) / sum_c 2^(x[t,c] - max_c x[t,c])        above[t] = |{c: x[t,c] > floor}|
//
// Shapes     x, y [T, C] f32; above [T] u32. Row-major.
// Mapping    one block of 4 warps per row. Maxima by shuffles, then over the warps by four lanes; sums by a tree in
//            shared memory within each warp.
// Numerics   for integers whose powers span less than 24 bits only the division rounds.
#include "common.cuh"

constexpr uint32_t WARPS = 4;
constexpr unsigned FIRST_LANES = 0xf;  // one for each warp

extern "C" __global__ void __launch_bounds__(WARPS* WARP)
softmax(const float* x, float* y, uint32_t* above, float floor, uint32_t C) {
    __shared__ float maxima[WARPS], trees[WARPS][WARP], sums[WARPS];
    __shared__ uint32_t counts[WARPS];
    const uint32_t lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    x += size_t(blockIdx.x) * C;
    y += size_t(blockIdx.x) * C;

    float largest = -INFINITY;
    uint32_t count = 0;
#pragma unroll 1
    for (uint32_t first = warp * WARP; first < C; first += WARPS * WARP) {
        const uint32_t c = first + lane;
        const float value = c < C ? x[c] : -INFINITY;
        largest = fmaxf(largest, value);
        count += __popc(__ballot_sync(FULL_MASK, value > floor));
    }
    for (int offset = WARP / 2; offset > 0; offset /= 2) {
        largest = fmaxf(largest, __shfl_xor_sync(FULL_MASK, largest, offset));
    }
    if (lane == 0) {
        maxima[warp] = largest;
        counts[warp] = count;
    }
    __syncthreads();
    if (threadIdx.x < WARPS) {
        float of_warp = maxima[threadIdx.x];
        for (int offset = WARPS / 2; offset > 0; offset /= 2) {
            of_warp = fmaxf(of_warp, __shfl_xor_sync(FIRST_LANES, of_warp, offset));
        }
        maxima[threadIdx.x] = of_warp;
        uint32_t of_warps = counts[threadIdx.x];
        for (int offset = WARPS / 2; offset > 0; offset /= 2) {
            of_warps += __shfl_down_sync(FIRST_LANES, of_warps, offset, WARPS);
        }
        if (threadIdx.x == 0) above[blockIdx.x] = of_warps;
    }
    __syncthreads();
    largest = maxima[warp];

    float sum = 0.0f;
#pragma unroll 1
    for (uint32_t c = threadIdx.x; c < C; c += WARPS * WARP) sum += exp2f(x[c] - largest);
    trees[warp][lane] = sum;
    for (uint32_t half = WARP / 2; half > 0; half /= 2) {
        __syncwarp();
        if (lane < half) trees[warp][lane] += trees[warp][lane + half];
    }
    if (lane == 0) sums[warp] = trees[warp][0];
    __syncthreads();
    sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
#pragma unroll 1
    for (uint32_t c = threadIdx.x; c < C; c += WARPS * WARP) y[c] = exp2f(x[c] - largest) / sum;
}
