// y = x^T: a sample for the mutants, of vector accesses through padded shared memory.
//
// Shapes     x [M, N] f32, y [N, M] f32, row-major.
// Requires   M % 4 == 0, N % 4 == 0; 16-byte aligned x, y.
// Mapping    a block of 4 warps per tile of 32 x 32, 16 bytes per thread and access. Rows are padded by 16 bytes, so
//            that they stay aligned and a column spreads over the banks.
#include "common.cuh"

constexpr uint32_t TILE = 32, PITCH = TILE + 4, THREADS = 128;

extern "C" __global__ void __launch_bounds__(THREADS)
transpose(const float* __restrict__ x, float* __restrict__ y, uint32_t M, uint32_t N) {
    __shared__ alignas(16) float tile[TILE * PITCH];
    const uint32_t row = blockIdx.y * TILE, column = blockIdx.x * TILE;
#pragma unroll
    for (uint32_t first = 0; first < TILE * TILE / 4; first += THREADS) {
        const uint32_t i = first + threadIdx.x, r = i / (TILE / 4), c = i % (TILE / 4) * 4;
        if (row + r < M && column + c < N) {
            store(tile + r * PITCH + c, load<4>(x + size_t(row + r) * N + column + c));
        }
    }
    __syncthreads();
#pragma unroll
    for (uint32_t first = 0; first < TILE * TILE / 4; first += THREADS) {
        const uint32_t i = first + threadIdx.x, c = i / (TILE / 4), r = i % (TILE / 4) * 4;
        if (column + c < N && row + r < M) {
            Pack<float, 4> out;
            for (uint32_t k = 0; k < 4; ++k) out.v[k] = tile[(r + k) * PITCH + c];
            store(y + size_t(column + c) * M + row + r, out);
        }
    }
}
