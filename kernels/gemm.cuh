// Matrix products on tensor cores: tiles of both operands in shared memory, C in registers, then handed out in chunks of
// a row. What becomes of C is the business of the file that includes this. No kernel.
//
// C [M, N] = A [M, K] · B [K, N], a tile of C per block of four warps; mma.sync with fp32 accumulators, over K in ascending
// order whatever grid and tile, so the bits of C do not depend on them. A ring of stages of depth 32, filled by cp.async
// (Turing: by loads and stores). 16-byte chunks are permuted within a stage so that the eight rows of an ldmatrix lie in
// different banks. Operands need rows of whole 16-byte chunks and 16-byte aligned addresses.
//
//   tile     warps            shared memory, Turing's       ldmatrix.x4 : mma per warp and 16 of K
//   128×128  2×2 of 64×64     48 KiB, 32 KiB                8 : 32
//   128×64   4×1 of 32×64     36 KiB, 24 KiB                6 : 16
//   64×64    4×1 of 16×64     24 KiB, 18 KiB (for staging)  5 : 8
#pragma once
#include "mma.cuh"
#include "noise.cuh"

constexpr int DEPTH = 32;        // of K per stage
constexpr int THREADS = 128;
constexpr int WARP_N = 64;       // columns of C per warp
constexpr int STAGED_ROWS = 16;  // rows of C that a warp stages at once
constexpr int PITCH = 72;        // floats from one staged row to the next: 8 banks on, so stores do not collide
#if __CUDA_ARCH__ >= 800
constexpr int STAGES = 3;
#else
constexpr int STAGES = 2;  // nothing is under way in a third, and two blocks fit in 64 KiB
#endif

// Rows and columns of C per block, and of its warps.
template <int ROWS, int COLUMNS>
struct Tile {
    static constexpr int M = ROWS, N = COLUMNS;
    static constexpr int WARPS_ALONG_N = N / WARP_N, WARP_M = M * WARPS_ALONG_N / (THREADS / WARP);

    // Where a warp's part of C begins in the block's.
    static __device__ __forceinline__ int warp_row() { return threadIdx.x / WARP / WARPS_ALONG_N * WARP_M; }
    static __device__ __forceinline__ int warp_column() { return threadIdx.x / WARP % WARPS_ALONG_N * WARP_N; }
};

// How an operand lies in memory: along K, or along the other dimension (M or N).
enum class Along { K, Other };

// Rows or columns in order.
struct InOrder {
    int first, count;
    __device__ __forceinline__ int operator()(int i) const { return first + i < count ? first + i : -1; }
};

// One operand's part of a stage: OWN along its own dimension, DEPTH along K, in chunks along memory.
template <typename E, Along ALONG, int OWN>
struct Operand {
    static constexpr int ROWS = ALONG == Along::K ? OWN : DEPTH;
    static constexpr int CHUNKS = (ALONG == Along::K ? DEPTH : OWN) / CHUNK;  // of a row

    // Place of a chunk in the tile. The eight rows of a matrix take eight different places of 16 bytes in 128.
    static __device__ __forceinline__ int place(int row, int chunk) {
        const int permuted = ALONG == Along::K ? chunk ^ (row / 2 % 4) : chunk ^ row % 8;
        return (row * CHUNKS + permuted) * CHUNK;
    }

    // Starts copying the tile from k on of the matrix, which has `others` rows or columns and K of K. `at` says which of
    // them is the i-th of the tile; -1 for none.
    template <typename Map>
    static __device__ __forceinline__ void copy(E* tile, const E* matrix, Map at, int k, int others, int K) {
#pragma unroll
        for (int i = 0; i < ROWS * CHUNKS / THREADS; ++i) {
            const int index = i * THREADS + threadIdx.x, row = index / CHUNKS, chunk = index % CHUNKS;
            const int o = at(ALONG == Along::K ? row : chunk * CHUNK);
            const int d = k + (ALONG == Along::K ? chunk * CHUNK : row);
            const bool inside = o >= 0 && d < K;
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

template <typename E, typename T>
union alignas(16) Shared {
    struct {
        E a[STAGES][T::M * DEPTH], b[STAGES][T::N * DEPTH];
    } stages;
    float staged[THREADS / WARP][STAGED_ROWS * PITCH];
};

template <typename T>
using Sums = float[T::WARP_M / 16][WARP_N / 8][4];

// A warp's sums of A·B, from the block's rows and columns on. When it returns, `shared` may be used for something else.
template <typename E, typename T, Along ALONG_A, Along ALONG_B, typename MapA, typename MapB>
__device__ __forceinline__ void multiply(Shared<E, T>& shared, Sums<T>& sums, const E* a, MapA rows, int M, const E* b,
                                         MapB columns, int N, int K) {
    using A = Operand<E, ALONG_A, T::M>;
    using B = Operand<E, ALONG_B, T::N>;
    const int m = T::warp_row(), n = T::warp_column(), depths = (K + DEPTH - 1) / DEPTH;
    const auto start_copy = [&](int depth) {
        if (depth < depths) {
            A::copy(shared.stages.a[depth % STAGES], a, rows, depth * DEPTH, M, K);
            B::copy(shared.stages.b[depth % STAGES], b, columns, depth * DEPTH, N, K);
        }
        commit_copies();  // also an empty group, so that the number to wait for stays the same
    };
    for (int depth = 0; depth < STAGES - 1; ++depth) start_copy(depth);
    for (int depth = 0; depth < depths; ++depth) {
        wait_copies<STAGES - 2>();
        __syncthreads();  // this stage has arrived for all, and all are done with the one that is filled next
        start_copy(depth + STAGES - 1);
        const E* stage_a = shared.stages.a[depth % STAGES];
        const E* stage_b = shared.stages.b[depth % STAGES];
#pragma unroll
        for (int k = 0; k < DEPTH; k += 16) {
            uint32_t fa[T::WARP_M / 16][4], fb[WARP_N / 16][4];
#pragma unroll
            for (int i = 0; i < T::WARP_M / 16; ++i) A::template fragment<true>(fa[i], stage_a, m + i * 16, k);
#pragma unroll
            for (int i = 0; i < WARP_N / 16; ++i) B::template fragment<false>(fb[i], stage_b, n + i * 16, k);
#pragma unroll
            for (int i = 0; i < T::WARP_M / 16; ++i)
#pragma unroll
                for (int j = 0; j < WARP_N / 8; ++j)
                    mma<E>(sums[i][j], fa[i], fb[j / 2][j % 2 * 2], fb[j / 2][j % 2 * 2 + 1]);
        }
    }
    wait_copies<0>();
    __syncthreads();
}

// Multiplies a warp's sums by a mask; the block's rows and columns begin at (m0, n0).
template <typename T>
__device__ __forceinline__ void mask(Sums<T>& sums, const StepParams* step, const Dropout& dropout, int m0, int n0) {
    const int lane = threadIdx.x % WARP, n = n0 + T::warp_column() + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < T::WARP_M / 8; ++i) {
        const uint32_t key = row_key(step, dropout.site, m0 + T::warp_row() + i * 8 + lane / 4);
#pragma unroll
        for (int j = 0; j < WARP_N / 4; ++j)  // an mma leaves a lane two columns of a row, and of the one 8 below
            sums[i / 2][j / 2][i % 2 * 2 + j % 2] *= dropout.at(key, n + j / 2 * 8 + j % 2);
    }
}

// Sixteen rows of a warp's sums to its staged rows: an mma leaves a lane pairs of columns.
__device__ __forceinline__ void stage(float* staged, const float (&sums)[WARP_N / 8][4]) {
    const int lane = threadIdx.x % WARP;
#pragma unroll
    for (int j = 0; j < WARP_N / 8; ++j) {
        float* at = staged + lane / 4 * PITCH + j * 8 + lane % 4 * 2;
        store(at, Pack<float, 2>{sums[j][0], sums[j][1]});
        store(at + 8 * PITCH, Pack<float, 2>{sums[j][2], sums[j][3]});
    }
}

// A chunk of a staged row. Eight lanes read the eight chunks of a row; each begins with the half of its chunk in which
// they differ in banks.
__device__ __forceinline__ Pack<float, CHUNK> staged_chunk(const float* staged, int row, int chunk) {
    const int first = chunk / 4 * 4;
    const float* at = staged + row * PITCH + chunk * CHUNK;
    const auto x = load<4>(at + first), y = load<4>(at + (4 - first));
    Pack<float, CHUNK> out;
    for (int k = 0; k < 4; ++k) {
        out.v[k] = first ? y.v[k] : x.v[k];
        out.v[k + 4] = first ? x.v[k] : y.v[k];
    }
    return out;
}
