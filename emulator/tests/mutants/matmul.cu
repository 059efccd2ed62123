// C = A B in bf16 with f32 sums: a sample for the mutants, made of what matrix kernels go wrong with.
//
// Shapes     a [M, K] bf16, b [K, N] bf16, c [M, N] f32, row-major.
// Requires   K % 8 == 0, N % 8 == 0; 16-byte aligned a, b.
// Mapping    a block of 4 warps per 32 x 64 tile of c, a warp per 16 x 32; steps of 64 in K through a ring of
//            STAGES stages in dynamic shared memory, filled by cp.async. Rows of 128 bytes; the 16-byte chunks of
//            a row are swizzled by its number, so that ldmatrix meets no bank conflict.
// Numerics   exact for small integers.
#include "common.cuh"

constexpr uint32_t THREADS = 128, TILE_M = 32, TILE_N = 64, TILE_K = 64, STAGES = 3;
constexpr uint32_t ROW_BYTES = 128, STAGE_BYTES = (TILE_M + TILE_K) * ROW_BYTES;

// Byte of a chunk in a tile of rows of 128 bytes.
__device__ __forceinline__ uint32_t swizzled(uint32_t row, uint32_t chunk) {
    return row * ROW_BYTES + ((chunk ^ (row % 8)) * 16);
}

// Copies 16 bytes, or zeros if they lie outside of the matrix.
__device__ __forceinline__ void copy_async(uint32_t to, const __nv_bfloat16* from, bool inside) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(inside ? 16 : 0)
                 : "memory");
}

template <uint32_t ROWS>
__device__ __forceinline__ void copy_tile(uint32_t to, const __nv_bfloat16* from, uint32_t row, uint32_t column,
                                          uint32_t rows, uint32_t columns) {
#pragma unroll
    for (uint32_t first = 0; first < ROWS * 8; first += THREADS) {
        const uint32_t i = first + threadIdx.x, r = i / 8, chunk = i % 8;
        const bool inside = row + r < rows && column + chunk * 8 < columns;
        const size_t at = inside ? size_t(row + r) * columns + column + chunk * 8 : 0;
        copy_async(to + swizzled(r, chunk), from + at, inside);
    }
}

__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], uint32_t from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(from) : "memory");
}

__device__ __forceinline__ void load_matrices_transposed(uint32_t (&r)[4], uint32_t from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(from) : "memory");
}

__device__ __forceinline__ void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

extern "C" __global__ void __launch_bounds__(THREADS)
matmul(const __nv_bfloat16* a, const __nv_bfloat16* b, float* c, uint32_t M, uint32_t N, uint32_t K) {
    extern __shared__ uint4 ring[];
    const uint32_t base = uint32_t(__cvta_generic_to_shared(ring));
    const uint32_t row = blockIdx.y * TILE_M, column = blockIdx.x * TILE_N, steps = (K + TILE_K - 1) / TILE_K;
    const uint32_t lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const uint32_t m = warp / 2 * 16, n = warp % 2 * 32;
    float sums[4][4] = {};

    const auto fill = [&](uint32_t step) {
        if (step < steps) {
            const uint32_t stage = base + step % STAGES * STAGE_BYTES;
            copy_tile<TILE_M>(stage, a, row, step * TILE_K, M, K);
            copy_tile<TILE_K>(stage + TILE_M * ROW_BYTES, b, step * TILE_K, column, K, N);
        }
        asm volatile("cp.async.commit_group;" ::: "memory");
    };
#pragma unroll 1
    for (uint32_t step = 0; step < STAGES - 1; ++step) fill(step);
#pragma unroll 1
    for (uint32_t step = 0; step < steps; ++step) {
        asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 2) : "memory");
        __syncthreads();  // all have copied this stage, and all are done with the one that is filled next
        fill(step + STAGES - 1);
        const uint32_t of_a = base + step % STAGES * STAGE_BYTES, of_b = of_a + TILE_M * ROW_BYTES;
#pragma unroll 1
        for (uint32_t k = 0; k < TILE_K; k += 16) {
            uint32_t x[4], y[4];
            load_matrices(x, of_a + swizzled(m + lane % 16, k / 8 + lane / 16));
            for (uint32_t half = 0; half < 2; ++half) {
                load_matrices_transposed(y, of_b + swizzled(k + lane % 16, n / 8 + half * 2 + lane / 16));
                multiply(sums[half * 2], x, y[0], y[1]);
                multiply(sums[half * 2 + 1], x, y[2], y[3]);
            }
        }
    }
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) {
        for (uint32_t half = 0; half < 2; ++half) {
            const uint32_t t = row + m + lane / 4 + half * 8, at = column + n + i * 8 + lane % 4 * 2;
            if (t < M && at < N) {
                *reinterpret_cast<float2*>(c + size_t(t) * N + at) =
                    make_float2(sums[i][half * 2], sums[i][half * 2 + 1]);
            }
        }
    }
}
