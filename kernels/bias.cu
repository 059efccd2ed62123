// Gradient of a linear layer's bias: sums of dy's columns over the tokens.
//
//   bias_gradient             partials[b,n] = sum of dy[t,n] over the rows t of block b
//   rmsnorm_backward_finish   db[n] = sum_b partials[b,n], added to where step->accumulate says so (rmsnorm.cu: the weight
//                             of a norm has the same)
//
// Shapes     dy [T, N] A; partials [ceil(T/32), N] f32; db [N] f32. Row-major, contiguous. A is f32, bf16 or f16.
// Requires   N % 8 == 0, dy and partials 16-byte aligned (production rung). Checked in src/ops/bias.rs, not here.
// Mapping    a block per 32 rows and 1024 columns, a thread per 8 columns, whose sums stay in registers. The grid covers
//            the largest T, rows from step->tokens on are left.
// Numerics   f32, in ascending t: the bits of src/ops/bias.rs.
// Budget     bias_gradient: 64 registers, 0 bytes shared, 8 blocks of 128 threads
// Bytes      bias_gradient: read sizeof(A)*T*N, written 4*N*ceil(T/32). All in 16-byte accesses.
// Ladder     v1 naive, a thread per column: the GPU's oracle and the bench's baseline, for any N.
//            v2 as above, 16-byte access: production.
#include "common.cuh"

constexpr int PER_THREAD = 8;         // consecutive columns: 16 bytes of a 16-bit type, twice that of f32
constexpr int ROWS_PER_PARTIAL = 32;  // src/ops/rmsnorm.rs
constexpr int THREADS = 128;

template <typename E, int COLUMNS>
__device__ __forceinline__ void gradient(const StepParams* step, const E* __restrict__ dy,
                                         float* __restrict__ partials, int N) {
    const uint32_t first = blockIdx.x * ROWS_PER_PARTIAL, end = min(first + ROWS_PER_PARTIAL, step->tokens);
    const int n = (blockIdx.y * THREADS + threadIdx.x) * COLUMNS;
    if (n >= N || first >= end) return;
    Pack<float, COLUMNS> sums = {};
#pragma unroll 4
    for (uint32_t t = first; t < end; ++t) {
        const auto row = load<COLUMNS>(dy + size_t(t) * N + n);
        for (int k = 0; k < COLUMNS; ++k) sums.v[k] += to_float(row.v[k]);
    }
    store(partials + size_t(blockIdx.x) * N + n, sums);
}

#define KERNELS(A, E)                                                                                        \
    extern "C" __global__ void __launch_bounds__(THREADS, 8) bias_gradient_##A(                              \
        const StepParams* step, const E* dy, float* partials, int N) {                                       \
        gradient<E, PER_THREAD>(step, dy, partials, N);                                                      \
    }                                                                                                        \
    extern "C" __global__ void __launch_bounds__(THREADS) bias_gradient_naive_##A(                           \
        const StepParams* step, const E* dy, float* partials, int N) {                                       \
        gradient<E, 1>(step, dy, partials, N);                                                               \
    }
KERNELS(f32, float)
KERNELS(bf16, __nv_bfloat16)
KERNELS(f16, __half)
