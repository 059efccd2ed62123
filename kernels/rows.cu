// Rows of activations, moved or cleared as they are, whatever the type of their elements.
//
//   rows_zero      x[t] = 0                        t < step->tokens
//   rows_gather    to[i] = from[rows[first + i]]   i < min(most, step->supervised - first)
//   rows_scatter   to[rows[first + i]] = from[i]   the same i; the other rows of `to` are left
//
// Shapes     x [T, n], from and to [.., n], of n units: bytes (naive) or 16 bytes (production). rows [T] u32.
// Requires   16-byte aligned x, from, to and rows of whole 16 bytes (production rung); entries of rows differ (scatter).
//            Checked in src/ops/rows.rs, the entries by who fills them.
// Mapping    one warp per row, 4 warps per block; the grid covers the most rows there can be.
// Numerics   none: bits are copied.
// Budget     rows_*: 64 registers, 0 bytes shared, 8 blocks of 128 threads
// Bytes      rows_zero: read 4*T, written T*n; rows_gather: read R*n + 8*R, written R*n; rows_scatter: read R*n + 8*R,
//            written R*n. R rows of n bytes. All but rows and the step's parameters in 16-byte accesses.
// Ladder     v1 naive, a byte per lane: any width. v2 16 bytes per lane: production.
#include "common.cuh"

__device__ __forceinline__ int row_of_warp() { return blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP; }

template <typename U>
__device__ __forceinline__ void zero(const StepParams* step, U* x, int n) {
    const int t = row_of_warp();
    if (t >= int(step->tokens)) return;
    for (int k = threadIdx.x % WARP; k < n; k += WARP) x[size_t(t) * n + k] = U{};
}

template <typename U, bool GATHERS>
__device__ __forceinline__ void move(const StepParams* step, const uint32_t* __restrict__ rows, int first, int most,
                                     const U* __restrict__ from, U* __restrict__ to, int n) {
    const int i = row_of_warp();
    if (i >= min(int(step->supervised) - first, most)) return;
    const uint32_t row = rows[first + i];
    from += size_t(GATHERS ? row : i) * n;
    to += size_t(GATHERS ? i : row) * n;
    for (int k = threadIdx.x % WARP; k < n; k += WARP) to[k] = from[k];
}

#define KERNELS(RUNG, U)                                                                                     \
    extern "C" __global__ void __launch_bounds__(128) rows_zero##RUNG(const StepParams* step, U* x, int n) { \
        zero<U>(step, x, n);                                                                                 \
    }                                                                                                        \
    extern "C" __global__ void __launch_bounds__(128)                                                        \
        rows_gather##RUNG(const StepParams* step, const uint32_t* rows, int first, int most, const U* from,  \
                          U* to, int n) {                                                                    \
        move<U, true>(step, rows, first, most, from, to, n);                                                 \
    }                                                                                                        \
    extern "C" __global__ void __launch_bounds__(128)                                                        \
        rows_scatter##RUNG(const StepParams* step, const uint32_t* rows, int first, int most, const U* from, \
                           U* to, int n) {                                                                   \
        move<U, false>(step, rows, first, most, from, to, n);                                                \
    }
KERNELS(_naive, uint8_t)
KERNELS(, uint4)
