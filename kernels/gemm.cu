// Products with a weight W [O, I] of a linear layer, on tensor cores: forward, both gradients.
//
//   linear                   y  = x·Wᵀ             x  [T, I] A, y  [T, O] A
//   linear_residual          y  = residual + x·Wᵀ  residual, y [T, O] f32
//   linear_input_gradient    dx = dy·W             dy [T, O] A, dx [T, I] A
//   linear_weight_gradient   dW = dyᵀ·x            dW [O, I] f32; added to where step->accumulate says so
//
// Shapes     W [O, I] A. Row-major, contiguous. A is bf16 (compute capability 8.0 and up) or f16; naive f32 too.
// Requires   O % 8 == 0, I % 8 == 0, all buffers 16-byte aligned (production rung). Checked in
//            src/ops/linear_launch.rs, not here.
// Mapping    C [M, N] = A [M, K] · B [K, N], 128×128 of C per block, four warps of 64×64; the grid covers the
//            largest T. Rows from step->tokens on are neither read nor written.
// Numerics   mma.sync with fp32 accumulators, over K in ascending order whatever the grid (deterministic); then
//            the residual or the old gradient is added in f32. One rounding to A per element, at the store.
// Shared     three stages of two 8 KiB tiles, filled by cp.async (Turing: by loads and stores). 16-byte chunks are
//            permuted within a tile so that the eight rows of an ldmatrix lie in different banks. The epilogue uses
//            the same memory to give each lane whole chunks of a row.
// Bytes      2*(M*K*ceil(N/128) + N*K*ceil(M/128)) read before L2, sizeof(C)*M*N written.
// Ladder     v1 naive, one thread per element of C.
//            v2 tiles in shared memory, tensor cores: production.
#include <type_traits>

#include "common.cuh"

constexpr int TILE = 128;        // rows and columns of C per block
constexpr int DEPTH = 32;        // of K per stage
constexpr int STAGES = 3;
constexpr int THREADS = 128;
constexpr int CHUNK = 8;         // elements of 16 bytes
constexpr int WARP_TILE = 64;    // rows and columns of C per warp
constexpr int STAGED_ROWS = 16;  // rows of C that a warp stages at once
constexpr int PITCH = 72;        // floats from one staged row to the next: 8 banks on, so stores do not collide

// How an operand lies in memory: along K, or along the other dimension (M or N).
enum class Along { K, Other };

enum class Product { Linear, Residual, InputGradient, WeightGradient };

// Dimensions of C = A·B for one of the products.
struct Shape {
    int M, N, K;
};

template <Product P>
__device__ __forceinline__ Shape shape(const StepParams* step, int inputs, int outputs) {
    const int T = int(step->tokens);
    if (P == Product::WeightGradient) return {outputs, inputs, T};
    if (P == Product::InputGradient) return {T, inputs, outputs};
    return {T, outputs, inputs};
}

// Type of C.
template <Product P, typename E>
using Output = std::conditional_t<P == Product::Residual || P == Product::WeightGradient, float, E>;

template <Product P>
constexpr Along a_along = P == Product::WeightGradient ? Along::Other : Along::K;
template <Product P>
constexpr Along b_along = P == Product::Linear || P == Product::Residual ? Along::K : Along::Other;

__device__ __forceinline__ uint32_t shared_address(const void* p) {
    return uint32_t(__cvta_generic_to_shared(p));
}

// 16 bytes from global to shared memory, or 16 zero bytes.
__device__ __forceinline__ void copy_chunk(void* to, const void* from, bool inside) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
                 "r"(inside ? 16 : 0)
                 : "memory");
#else
    uint4 x = make_uint4(0, 0, 0, 0);
    if (inside) x = *static_cast<const uint4*>(from);
    *static_cast<uint4*>(to) = x;
#endif
}

__device__ __forceinline__ void commit_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until all but the newest N groups of this thread's copies have arrived.
template <int N>
__device__ __forceinline__ void wait_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#endif
}

// Four 8×8 matrices of 16-bit elements; lane l gives the row l % 8 of matrix l / 8.
template <bool TRANSPOSED>
__device__ __forceinline__ void load_matrices(uint32_t (&d)[4], const void* row) {
    if (TRANSPOSED)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                     : "r"(shared_address(row))
                     : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                     : "r"(shared_address(row))
                     : "memory");
}

#define MMA(SHAPE, TYPE, A, B)                                                                               \
    asm volatile("mma.sync.aligned." SHAPE ".row.col.f32." TYPE "." TYPE ".f32 {%0, %1, %2, %3}, " A ", " B  \
                 ", {%0, %1, %2, %3};"

// d += a·b: 16×16 times 16×8.
template <typename E>
__device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);

#if __CUDA_ARCH__ >= 800
#define DEFINE_MMA(E, TYPE)                                                                                  \
    template <>                                                                                              \
    __device__ __forceinline__ void mma<E>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) { \
        MMA("m16n8k16", TYPE, "{%4, %5, %6, %7}", "{%8, %9}")                                                \
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                                 \
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));                                 \
    }
DEFINE_MMA(__half, "f16")
DEFINE_MMA(__nv_bfloat16, "bf16")
#else  // Turing: f16 only, eight of K at a time
template <>
__device__ __forceinline__ void mma<__half>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    MMA("m16n8k8", "f16", "{%4, %5}", "{%6}")
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(b0));
    MMA("m16n8k8", "f16", "{%4, %5}", "{%6}")
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[2]), "r"(a[3]), "r"(b1));
}
#endif

// One operand's part of a stage: TILE along its own dimension, DEPTH along K, in chunks along memory.
template <typename E, Along ALONG>
struct Operand {
    static constexpr int ROWS = ALONG == Along::K ? TILE : DEPTH;
    static constexpr int CHUNKS = (ALONG == Along::K ? DEPTH : TILE) / CHUNK;  // of a row

    // Place of a chunk in the tile. The eight rows of a matrix take eight different places of 16 bytes in 128.
    static __device__ __forceinline__ int place(int row, int chunk) {
        const int permuted = ALONG == Along::K ? chunk ^ (row / 2 % 4) : chunk ^ row % 8;
        return (row * CHUNKS + permuted) * CHUNK;
    }

    // Starts copying the tile at (own, k) of the matrix, which has `others` rows or columns and K of K.
    static __device__ __forceinline__ void copy(E* tile, const E* matrix, int own, int k, int others, int K) {
#pragma unroll
        for (int i = 0; i < ROWS * CHUNKS / THREADS; ++i) {
            const int index = i * THREADS + threadIdx.x, row = index / CHUNKS, chunk = index % CHUNKS;
            const int o = own + (ALONG == Along::K ? row : chunk * CHUNK);
            const int d = k + (ALONG == Along::K ? chunk * CHUNK : row);
            const bool inside = o < others && d < K;
            const size_t offset = ALONG == Along::K ? size_t(o) * K + d : size_t(d) * others + o;
            copy_chunk(tile + place(row, chunk), matrix + (inside ? offset : 0), inside);
        }
    }

    // The 16×16 fragment of A at (own, k) of the tile; or the two 16×8 fragments of B there, one after the other. Of
    // the four matrices A's second is the lower half of its rows, B's second the lower half of K.
    template <bool IS_A>
    static __device__ __forceinline__ void fragment(uint32_t (&d)[4], const E* tile, int own, int k) {
        const int lane = threadIdx.x % WARP, matrix = lane / 8;
        const int own_half = IS_A ? matrix % 2 : matrix / 2, k_half = IS_A ? matrix / 2 : matrix % 2;
        if (ALONG == Along::K)
            load_matrices<false>(d, tile + place(own + own_half * 8 + lane % 8, k / CHUNK + k_half));
        else
            load_matrices<true>(d, tile + place(k + k_half * 8 + lane % 8, own / CHUNK + own_half));
    }
};

template <typename E>
union Shared {
    struct {
        E a[STAGES][TILE * DEPTH], b[STAGES][TILE * DEPTH];
    } tiles;
    float staged[THREADS / WARP][STAGED_ROWS * PITCH];
};

// Eight neighbouring elements of C, from their sums.
template <Product P, typename E>
__device__ __forceinline__ void finish(const StepParams* step, Pack<float, CHUNK> sums, const float* residual,
                                       Output<P, E>* c) {
    Pack<Output<P, E>, CHUNK> out;
    Pack<float, CHUNK> old{};
    if constexpr (P == Product::Residual) old = load<CHUNK>(residual);
    if constexpr (P == Product::WeightGradient)
        if (step->accumulate) old = load<CHUNK>(c);
    for (int k = 0; k < CHUNK; ++k) out.v[k] = from_float<Output<P, E>>(old.v[k] + sums.v[k]);
    store(c, out);
}

// Writes a warp's 64×64 sums, sixteen rows at a time by way of shared memory: an mma leaves a lane pairs of columns.
template <Product P, typename E>
__device__ __forceinline__ void epilogue(const StepParams* step, const float (&sums)[4][8][4], float* staged,
                                         const float* residual, Output<P, E>* c, int m, int n, Shape s) {
    const int lane = threadIdx.x % WARP, chunk = lane % 8;
    const int first = chunk / 4 * 4;  // half of its chunk that a lane reads first, so that eight lanes differ in banks
#pragma unroll
    for (int i = 0; i < WARP_TILE / STAGED_ROWS; ++i) {
        __syncwarp();
#pragma unroll
        for (int j = 0; j < WARP_TILE / 8; ++j) {
            float* at = staged + lane / 4 * PITCH + j * 8 + lane % 4 * 2;
            store(at, Pack<float, 2>{sums[i][j][0], sums[i][j][1]});
            store(at + 8 * PITCH, Pack<float, 2>{sums[i][j][2], sums[i][j][3]});
        }
        __syncwarp();
#pragma unroll
        for (int row = lane / 8; row < STAGED_ROWS; row += WARP / 8) {
            const float* at = staged + row * PITCH + chunk * CHUNK;
            const auto x = load<4>(at + first), y = load<4>(at + (4 - first));
            Pack<float, CHUNK> out;
            for (int k = 0; k < 4; ++k) {
                out.v[k] = first ? y.v[k] : x.v[k];
                out.v[k + 4] = first ? x.v[k] : y.v[k];
            }
            const int r = m + i * STAGED_ROWS + row, column = n + chunk * CHUNK;
            if (r >= s.M || column >= s.N) continue;
            const size_t offset = size_t(r) * s.N + column;
            finish<P, E>(step, out, residual + (P == Product::Residual ? offset : 0), c + offset);
        }
    }
}

template <Product P, typename E>
__device__ __forceinline__ void multiply(const StepParams* step, const E* __restrict__ a, const E* __restrict__ b,
                                         const float* residual, Output<P, E>* c, int inputs, int outputs) {
    using A = Operand<E, a_along<P>>;
    using B = Operand<E, b_along<P>>;
    __shared__ Shared<E> shared;
    const Shape s = shape<P>(step, inputs, outputs);
    const int m0 = blockIdx.y * TILE, n0 = blockIdx.x * TILE;
    if (m0 >= s.M) return;
    const int warp = threadIdx.x / WARP, m = warp / 2 * WARP_TILE, n = warp % 2 * WARP_TILE;
    const int depths = (s.K + DEPTH - 1) / DEPTH;
    const auto start_copy = [&](int depth) {
        if (depth < depths) {
            A::copy(shared.tiles.a[depth % STAGES], a, m0, depth * DEPTH, s.M, s.K);
            B::copy(shared.tiles.b[depth % STAGES], b, n0, depth * DEPTH, s.N, s.K);
        }
        commit_copies();  // also an empty group, so that the number to wait for stays the same
    };

    float sums[WARP_TILE / 16][WARP_TILE / 8][4] = {};
    for (int depth = 0; depth < STAGES - 1; ++depth) start_copy(depth);
    for (int depth = 0; depth < depths; ++depth) {
        wait_copies<STAGES - 2>();
        __syncthreads();  // this stage has arrived for all, and all are done with the one that is filled next
        start_copy(depth + STAGES - 1);
        const E* tile_a = shared.tiles.a[depth % STAGES];
        const E* tile_b = shared.tiles.b[depth % STAGES];
#pragma unroll
        for (int k = 0; k < DEPTH; k += 16) {
            uint32_t fa[WARP_TILE / 16][4], fb[WARP_TILE / 16][4];
#pragma unroll
            for (int i = 0; i < WARP_TILE / 16; ++i) {
                A::template fragment<true>(fa[i], tile_a, m + i * 16, k);
                B::template fragment<false>(fb[i], tile_b, n + i * 16, k);
            }
#pragma unroll
            for (int i = 0; i < WARP_TILE / 16; ++i)
#pragma unroll
                for (int j = 0; j < WARP_TILE / 8; ++j)
                    mma<E>(sums[i][j], fa[i], fb[j / 2][j % 2 * 2], fb[j / 2][j % 2 * 2 + 1]);
        }
    }
    wait_copies<0>();
    __syncthreads();  // the tiles' memory now stages the sums
    epilogue<P, E>(step, sums, shared.staged[warp], residual, c, m0 + m, n0 + n, s);
}

template <Product P, typename E>
__device__ __forceinline__ void multiply_naive(const StepParams* step, const E* __restrict__ a,
                                               const E* __restrict__ b, const float* residual, Output<P, E>* c,
                                               int inputs, int outputs) {
    const Shape s = shape<P>(step, inputs, outputs);
    const int m = blockIdx.y, n = blockIdx.x * blockDim.x + threadIdx.x;
    if (m >= s.M || n >= s.N) return;
    float sum = 0.0f;
    for (int k = 0; k < s.K; ++k) {
        const size_t at_a = a_along<P> == Along::K ? size_t(m) * s.K + k : size_t(k) * s.M + m;
        const size_t at_b = b_along<P> == Along::K ? size_t(n) * s.K + k : size_t(k) * s.N + n;
        sum = fmaf(to_float(a[at_a]), to_float(b[at_b]), sum);
    }
    const size_t offset = size_t(m) * s.N + n;
    if (P == Product::Residual) sum += residual[offset];
    if (P == Product::WeightGradient && step->accumulate) sum += to_float(c[offset]);
    c[offset] = from_float<Output<P, E>>(sum);
}

// `residual` is read by linear_residual only.
#define KERNEL(NAME, PRODUCT, A, E, BODY, BLOCKS)                                                            \
    extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)                                            \
        NAME##_##A(const StepParams* step, const E* a, const E* b, const float* residual,                    \
                   Output<Product::PRODUCT, E>* c, int inputs, int outputs) {                                \
        BODY<Product::PRODUCT, E>(step, a, b, residual, c, inputs, outputs);                                 \
    }
#define KERNELS(SUFFIX, A, E, BODY, BLOCKS)                                                                  \
    KERNEL(linear##SUFFIX, Linear, A, E, BODY, BLOCKS)                                                       \
    KERNEL(linear_residual##SUFFIX, Residual, A, E, BODY, BLOCKS)                                            \
    KERNEL(linear_input_gradient##SUFFIX, InputGradient, A, E, BODY, BLOCKS)                                 \
    KERNEL(linear_weight_gradient##SUFFIX, WeightGradient, A, E, BODY, BLOCKS)
KERNELS(_naive, f32, float, multiply_naive, 8)
KERNELS(_naive, bf16, __nv_bfloat16, multiply_naive, 8)
KERNELS(_naive, f16, __half, multiply_naive, 8)
KERNELS(, f16, __half, multiply, 2)
#if __CUDA_ARCH__ >= 800
KERNELS(, bf16, __nv_bfloat16, multiply, 2)
#endif
