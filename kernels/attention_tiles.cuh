// What attention's kernels on tensor cores share: tiles of 64 tokens in shared memory, their fragments, and the way of a
// warp's sums to global memory. No kernel.
//
// A block of four warps has one tile of one sequence and one head: 16 rows of it per warp, in registers. It goes along
// the tiles that these rows meet, two operands of 64 rows each, in two stages that cp.async fills in turn (Turing: loads
// and stores). 16-byte chunks are permuted within a tile so that the eight rows of an ldmatrix lie in different banks.
#pragma once
#include "attention.cuh"
#include "mma.cuh"

constexpr int TILE = 64;        // tokens
constexpr int ROWS = 16;        // of a tile, per warp
constexpr int WIDEST = 64;      // head_dim
constexpr int AT_ONCE = 32;     // tokens of the other side whose probabilities the backward pass has in registers
constexpr float LOG2_E = 1.4426950408889634f;

// 2^x, zero below 2^-126.
__device__ __forceinline__ float power_of_two(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// A tile of a sequence of `length` tokens from `start` on. Rows are counted within the sequence.
struct TokenTile {
    int start, length, index;
    __device__ __forceinline__ int first() const { return index * TILE; }
    __device__ __forceinline__ int rows() const { return length - first(); }  // to the end: may be more than 64
    __device__ __forceinline__ int last_index() const { return (length - 1) / TILE; }
};

// The tile of block x; length 0: none. Sequence s has the blocks from cu_seqlens[s] / 64 + s on: never fewer than it has
// tiles. `descending`: its last tile first, which has most keys.
__device__ __forceinline__ TokenTile tile_of_block(const AttentionArgs& args, bool descending) {
    const int sequences = args.step->sequences, block = blockIdx.x;
    if (sequences == 0) return {0, 0, 0};
    const auto first_block = [&](int s) { return int(args.cu_seqlens[s]) / TILE + s; };
    const int s = last_up_to(first_block, sequences, block);
    const int start = args.cu_seqlens[s], length = int(args.cu_seqlens[s + 1]) - start;
    const int index = block - first_block(s), tiles = (length + TILE - 1) / TILE;
    return {start, index < tiles ? length : 0, descending ? tiles - 1 - index : index};
}

template <typename E, int D>
struct Tile {
    static constexpr int CHUNKS = D / CHUNK;  // of a row

    static __device__ __forceinline__ int place(int row, int chunk) {
        return (row * CHUNKS + (chunk ^ row / (8 / CHUNKS) % CHUNKS)) * CHUNK;
    }

    // Starts copying `rows` rows, at most 64; the others become zero.
    static __device__ __forceinline__ void copy(E* tile, const E* from, int stride, int rows) {
#pragma unroll
        for (int i = 0; i < TILE * CHUNKS / (WARPS * WARP); ++i) {
            const int index = i * WARPS * WARP + threadIdx.x, row = index / CHUNKS, chunk = index % CHUNKS;
            copy_chunk(tile + place(row, chunk), from + (row < rows ? row * stride + chunk * CHUNK : 0), row < rows);
        }
    }

    // Operand A: this warp's 16 rows.
    static __device__ __forceinline__ void own_rows(uint32_t (&a)[D / 16][4], const E* tile) {
        const int lane = threadIdx.x % WARP, row = threadIdx.x / WARP * ROWS + lane % 16;
#pragma unroll
        for (int k = 0; k < D / 16; ++k) load_matrices<false>(a[k], tile + place(row, k * 2 + lane / 16));
    }

    // sums += a · (rows first.. of the tile)ᵀ: products of the warp's rows with the tile's.
    template <int N>
    static __device__ __forceinline__ void times_rows(float (&sums)[N / 8][4], const uint32_t (&a)[D / 16][4],
                                                      const E* tile, int first) {
        const int lane = threadIdx.x % WARP, matrix = lane / 8;
#pragma unroll
        for (int k = 0; k < D / 16; ++k)
#pragma unroll
            for (int n = 0; n < N / 16; ++n) {
                uint32_t b[4];
                load_matrices<false>(b, tile + place(first + n * 16 + matrix / 2 * 8 + lane % 8, k * 2 + matrix % 2));
                mma<E>(sums[2 * n], a[k], b[0], b[1]);
                mma<E>(sums[2 * n + 1], a[k], b[2], b[3]);
            }
    }

    // sums += weights · (rows first.. of the tile), the weights rounded to E.
    template <int N>
    static __device__ __forceinline__ void add_weighed(float (&sums)[D / 8][4], const float (&weights)[N / 8][4],
                                                       const E* tile, int first) {
        const int lane = threadIdx.x % WARP;
#pragma unroll
        for (int k = 0; k < N / 16; ++k) {
            const float *low = weights[2 * k], *high = weights[2 * k + 1];
            const uint32_t a[4] = {pack<E>(low[0], low[1]), pack<E>(low[2], low[3]), pack<E>(high[0], high[1]),
                                   pack<E>(high[2], high[3])};
#pragma unroll
            for (int n = 0; n < D / 16; ++n) {
                uint32_t b[4];
                load_matrices<true>(b, tile + place(first + k * 16 + lane % 16, n * 2 + lane / 16));
                mma<E>(sums[2 * n], a, b[0], b[1]);
                mma<E>(sums[2 * n + 1], a, b[2], b[3]);
            }
        }
    }
};

template <typename E>
struct Stage {
    E a[TILE * WIDEST], b[TILE * WIDEST];
};

template <typename E>
union alignas(16) TileMemory {
    Stage<E> stages[2];
    float staged[WARPS][ROWS * (WIDEST + 8)];
};

// Where in a product with the warp's rows element e of a fragment lies.
__device__ __forceinline__ int fragment_row(int e) {
    return threadIdx.x / WARP * ROWS + threadIdx.x % WARP / 4 + e / 2 * 8;
}
__device__ __forceinline__ int fragment_column(int n, int e) { return n * 8 + threadIdx.x % 4 * 2 + e % 2; }

// Chunk of a staged row. Where the lanes of a quarter warp would meet in banks, odd rows begin with the other half.
template <int PITCH>
__device__ __forceinline__ Pack<float, CHUNK> staged_chunk(const float* staged, int row, int chunk) {
    const int first = row % 2 * 4;
    const float* at = staged + row * PITCH + chunk * CHUNK;
    const auto x = load<4>(at + first), y = load<4>(at + (4 - first));
    Pack<float, CHUNK> out;
    for (int k = 0; k < 4; ++k) {
        out.v[k] = first ? y.v[k] : x.v[k];
        out.v[k + 4] = first ? x.v[k] : y.v[k];
    }
    return out;
}

// This warp's sums to its rows of a tile that begins at `to`, `rows` rows long at most, in chunks of 16 bytes; TURNED:
// rotated back by their positions. `staged` is the warp's own.
template <bool TURNED, typename E, int D>
__device__ __forceinline__ void store_rows(E* to, int stride, int rows, const float (&sums)[D / 8][4], float* staged,
                                           const AttentionArgs& args, int token) {
    constexpr int PITCH = D + 8, PAIRS = D / 16;  // 8 banks on from row to row; a chunk and the one half a head on
    const int lane = threadIdx.x % WARP, own = threadIdx.x / WARP * ROWS;
    __syncwarp();
#pragma unroll
    for (int b = 0; b < D / 8; ++b) {
        float* at = staged + lane / 4 * PITCH + b * 8 + lane % 4 * 2;
        store(at, Pack<float, 2>{sums[b][0], sums[b][1]});
        store(at + 8 * PITCH, Pack<float, 2>{sums[b][2], sums[b][3]});
    }
    __syncwarp();
#pragma unroll
    for (int index = lane; index < ROWS * PAIRS; index += WARP) {
        const int row = index / PAIRS, pair = index % PAIRS;
        if (own + row >= rows) continue;
        const auto x = staged_chunk<PITCH>(staged, row, pair), y = staged_chunk<PITCH>(staged, row, pair + PAIRS);
        Pack<float, CHUNK> cos, sin;
        if (TURNED) {
            const size_t angle = size_t(args.positions[token + own + row]) * (D / 2) + pair * CHUNK;
            cos = load<CHUNK>(args.cos + angle), sin = load<CHUNK>(args.sin + angle);
        }
        Pack<E, CHUNK> first, second;
        for (int k = 0; k < CHUNK; ++k) {
            first.v[k] = from_float<E>(TURNED ? turned_first(x.v[k], y.v[k], cos.v[k], -sin.v[k]) : x.v[k]);
            second.v[k] = from_float<E>(TURNED ? turned_second(x.v[k], y.v[k], cos.v[k], -sin.v[k]) : y.v[k]);
        }
        E* at = to + (own + row) * stride + pair * CHUNK;
        store_whole(at, first);
        store_whole(at + D / 2, second);
    }
}
