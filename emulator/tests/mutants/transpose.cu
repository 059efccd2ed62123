// y = x^T: a sample for the mutants, of vector accesses through padded shared memory.
//
// Shapes     x [M, N] f32, y [N, M] f32, row-major.
// Requires   M % 4 == 0, N % 4 == 0; 16-byte aligned x, y.
// Mapping    a block of 4 warps per tile of 32 x 32, 16 bytes per thread and access. Rows are padded by 16 bytes, so
//            that they stay aligned and a column spreads over the banks.
#include "common.cuh"

constexpr uint32_t TILE = 32, PITCH = TILE + 4, THREADS = 128;

extern "C" __global__ void __launch_bounds__(THREADS) transpose(const float* x, float* y, uint32_t M, uint32_t N) {
    __shared__ float4 tile[TILE * PITCH / 4];
    float* cells = reinterpret_cast<float*>(tile);
    const uint32_t row = blockIdx.y * TILE, column = blockIdx.x * TILE;
#pragma unroll 1
    for (uint32_t i = threadIdx.x; i < TILE * TILE / 4; i += THREADS) {
        const uint32_t r = i / (TILE / 4), c = i % (TILE / 4) * 4;
        if (row + r < M && column + c < N) {
            tile[(r * PITCH + c) / 4] = *reinterpret_cast<const float4*>(x + size_t(row + r) * N + column + c);
        }
    }
    __syncthreads();
#pragma unroll 1
    for (uint32_t i = threadIdx.x; i < TILE * TILE / 4; i += THREADS) {
        const uint32_t c = i / (TILE / 4), r = i % (TILE / 4) * 4;
        if (column + c < N && row + r < M) {
            *reinterpret_cast<float4*>(y + size_t(column + c) * M + row + r) =
                make_float4(cells[r * PITCH + c], cells[(r + 1) * PITCH + c], cells[(r + 2) * PITCH + c],
                            cells[(r + 3) * PITCH + c]);
        }
    }
}
