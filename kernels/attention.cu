// Causal attention with grouped heads over sequences that lie end to end, forward.
//
//   out[t,h] = sum_j softmax_j(q[t,h]·k[j,h/g] / sqrt(D)) v[j,h/g], j over the tokens of t's sequence up to t
//   lse[t,h] = log sum_j exp(q[t,h]·k[j,h/g] / sqrt(D))
//
// Shapes     qkv [T, (H + 2K)·D] A: heads of q, of k, of v, rotated; out [T, H·D] A; lse [T, H] f32; g = H/K query
//            heads share a kv head; cu_seqlens [sequences + 1]. cached: qkv and out of the T new tokens, keys and
//            values [capacity, K·D] A, whose first `past` positions are in use. A is f32, bf16 or f16.
// Requires   production rung: D 16, 32 or 64, or for cached a multiple of 8 up to 128, and all buffers 16-byte aligned;
//            naive rung: D even, at most 128. Checked in src/ops/attention_launch.rs, not here.
// Rows       T is step->tokens; rows beyond are neither read nor written.
// Numerics   scores, softmax and sums in f32; probabilities rounded to A before they weigh the values, but not in the
//            sum that divides; one rounding to A at the store. Deterministic: every sum has a fixed order.
// Mapping    attention_tiles.cuh: a block per 64 queries of one sequence and head, over tiles of 64 keys up to its
//            own, scores and weights in registers (Dao 2023, arXiv:2307.08691). Blocks find their sequence in
//            cu_seqlens. Softmax to base 2: log2(e)/sqrt(D) is one factor, ex2.approx the exponential. cached: a block
//            per token and head, over 128 keys at a time.
// Budget     attention_forward: 168 registers, 32768 bytes shared, 3 blocks of 128 threads (sm_75: 2)
//            attention_append: 64 registers, 0 bytes shared, 8 blocks of 128 threads
//            attention_cached: 128 registers, 5280 bytes shared, 4 blocks of 128 threads
// Main loop  attention_forward: 112 HMMA, 63 LDSM. A warp's 16 rows against a tile of 64 keys and 64 values take D and
//            D/2, its own rows D/16 more, for D 64, 32 and 16.
// Bytes      attention_forward: read H*(sizeof(A)*T*D + 2*sizeof(A)*keys*D), written H*(sizeof(A)*T*D + 4*T);
//            attention_append: read 2*sizeof(A)*T*K*D, written 2*sizeof(A)*T*K*D;
//            attention_cached: read H*(sizeof(A)*T*D + 2*sizeof(A)*seen*D), written sizeof(A)*T*H*D. `keys` is the sum
//            over tiles of 64 queries of the keys up to the tile's end, `seen` that over tokens of positions up to each:
//            more than once each, as no block has a whole sequence; L2 serves all but the first. All but lse, and q
//            and out of cached, in 16-byte accesses.
// Ladder     v1 naive, one warp per row and head, two passes over the keys.
//            v2 tiles on tensor cores, running softmax; cached: 16-byte access, running softmax: production.
#include "attention_tiles.cuh"

// One head of one token over `seen` rows of keys and values, `stride` elements apart.
template <typename E>
__device__ __forceinline__ void attend(const E* q, const E* keys, const E* values, size_t stride, int seen, int D,
                                       E* out, float* lse) {
    const int lane = threadIdx.x % WARP;
    const float scale = 1.0f / sqrtf(float(D));
    float highest = -INFINITY;
    for (int j = lane; j < seen; j += WARP) highest = fmaxf(highest, dot(q, keys + j * stride, D) * scale);
    highest = warp_max(highest);

    float total = 0.0f, sums[MOST_COLUMNS] = {};
    for (int first = 0; first < seen; first += WARP) {
        const int j = first + lane;
        float p = j < seen ? expf(dot(q, keys + j * stride, D) * scale - highest) : 0.0f;
        total += p;
        p = to_float(from_float<E>(p));
        for (int k = 0; k < min(WARP, seen - first); ++k) add_row(sums, p, k, values + (first + k) * stride, D);
    }
    total = warp_sum(total);
    const float inverse = 1.0f / total;
#pragma unroll
    for (int i = 0; i < MOST_COLUMNS; ++i) {
        const int c = lane + i * WARP;
        if (c < D) out[c] = from_float<E>(sums[i] * inverse);
    }
    if (lse && lane == 0) *lse = highest + logf(total);
}

// Row and head of this warp; whether there is such a row.
struct RowAndHead {
    int t, h;
    __device__ __forceinline__ RowAndHead(int heads) {
        const int warp = blockIdx.x * WARPS + threadIdx.x / WARP;
        t = warp / heads, h = warp % heads;
    }
};

template <typename E>
__device__ __forceinline__ void forward_naive(const AttentionArgs& args) {
    const auto [t, h] = RowAndHead(args.heads);
    if (t >= int(args.step->tokens)) return;
    const int D = args.head_dim, kv = h / (args.heads / args.kv_heads);
    const size_t width = qkv_width(args);
    const int start = sequence_of(args, t).start;
    const E* qkv = static_cast<const E*>(args.qkv);
    const E* first = qkv + start * width;
    attend(qkv + t * width + h * D, first + key_column(args, kv), first + value_column(args, kv), width, t - start + 1, D,
           static_cast<E*>(args.out) + (size_t(t) * args.heads + h) * D, args.lse + size_t(t) * args.heads + h);
}

// Whether token t of this call has a place in the cache. Without one the call was refused on the host, unless it was
// not known there how many tokens there are.
__device__ __forceinline__ bool fits(const AttentionArgs& args, int t) {
    return t < int(args.step->tokens) && t < args.capacity - args.past;
}

// Keys and values of the new tokens to their places in the cache: a block per token, N elements at a time.
template <typename E, int N>
__device__ __forceinline__ void append(const AttentionArgs& args) {
    const int t = blockIdx.x, n = args.kv_heads * args.head_dim;
    if (!fits(args, t)) return;
    const E* k = static_cast<const E*>(args.qkv) + t * size_t(qkv_width(args)) + key_column(args, 0);
    const size_t to = size_t(args.past + t) * n;
    for (int i = threadIdx.x * N; i < n; i += blockDim.x * N) {
        store(static_cast<E*>(args.keys) + to + i, load<N>(k + i));
        store(static_cast<E*>(args.values) + to + i, load<N>(k + n + i));
    }
}

template <typename E>
__device__ __forceinline__ void append_chunks(const AttentionArgs& args) {
    append<E, 16 / sizeof(E)>(args);
}

template <typename E>
__device__ __forceinline__ void append_naive(const AttentionArgs& args) {
    append<E, 1>(args);
}

template <typename E>
__device__ __forceinline__ void cached_naive(const AttentionArgs& args) {
    const auto [t, h] = RowAndHead(args.heads);
    if (!fits(args, t)) return;
    const int D = args.head_dim, column = h / (args.heads / args.kv_heads) * D;
    attend(static_cast<const E*>(args.qkv) + t * size_t(qkv_width(args)) + h * D,
           static_cast<const E*>(args.keys) + column, static_cast<const E*>(args.values) + column,
           size_t(args.kv_heads) * D, args.past + t + 1, D,
           static_cast<E*>(args.out) + (size_t(t) * args.heads + h) * D, static_cast<float*>(nullptr));
}

// What the threads of a block share while they go over a cache.
struct CacheMemory {
    float q[WARP * MOST_COLUMNS], weights[WARPS * WARP], of_warp[2][WARPS];
    float halves[2][WARPS * WARP * CHUNK / 2 + 16];  // of a thread's sums; 16 banks apart, so that reads do not collide
    __device__ __forceinline__ float* sums(int thread, int i) { return halves[i / 4] + thread * 4 + i % 4; }
};

// A block per token and head, 128 keys at a time: a key per thread for the scores, then a chunk of columns of every so
// many values, whose sums come together at the end.
template <typename E>
__device__ __forceinline__ void cached(const AttentionArgs& args) {
    __shared__ alignas(16) CacheMemory memory;
    const int t = blockIdx.x, h = blockIdx.y, D = args.head_dim, thread = threadIdx.x, warp = thread / WARP;
    if (!fits(args, t)) return;
    const int column = h / (args.heads / args.kv_heads) * D, stride = args.kv_heads * D, seen = args.past + t + 1;
    const E* q = static_cast<const E*>(args.qkv) + t * size_t(qkv_width(args)) + h * D;
    const E *keys = static_cast<const E*>(args.keys) + column, *values = static_cast<const E*>(args.values) + column;
    if (thread < D) memory.q[thread] = to_float(q[thread]);
    __syncthreads();

    const int chunks = D / CHUNK, groups = WARPS * WARP / chunks, group = thread / chunks;
    const int own = thread % chunks * CHUNK;
    const float scale = 1.0f / sqrtf(float(D));
    float highest = -INFINITY, total = 0.0f, sums[CHUNK] = {};
    for (int first = 0; first < seen; first += WARPS * WARP) {
        const int count = min(WARPS * WARP, seen - first);
        float score = -INFINITY;
        if (thread < count) {
            const E* key = keys + size_t(first + thread) * stride;
            score = 0.0f;
            for (int c = 0; c < D; c += CHUNK) {
                const auto k = load<CHUNK>(key + c);
                for (int i = 0; i < CHUNK; ++i) score = fmaf(memory.q[c + i], to_float(k.v[i]), score);
            }
            score *= scale;
        }
        const float of_warp = warp_max(score);
        if (thread % WARP == 0) memory.of_warp[0][warp] = of_warp;
        __syncthreads();  // also: all are done with the weights of the keys before
        float most = highest;
        for (int w = 0; w < WARPS; ++w) most = fmaxf(most, memory.of_warp[0][w]);
        const float factor = expf(highest - most), p = expf(score - most);
        highest = most;
        total = total * factor + p;
        memory.weights[thread] = to_float(from_float<E>(p));
        __syncthreads();
        for (int i = 0; i < CHUNK; ++i) sums[i] *= factor;
        for (int k = group; k < count; k += groups) {  // threads that are left over make a group that nobody reads
            const auto v = load<CHUNK>(values + size_t(first + k) * stride + own);
            for (int i = 0; i < CHUNK; ++i) sums[i] = fmaf(memory.weights[k], to_float(v.v[i]), sums[i]);
        }
    }
    total = warp_sum(total);
    if (thread % WARP == 0) memory.of_warp[1][warp] = total;
    for (int i = 0; i < CHUNK; i += 4)
        store(memory.sums(thread, i), Pack<float, 4>{sums[i], sums[i + 1], sums[i + 2], sums[i + 3]});
    __syncthreads();
    if (thread >= D) return;
    float sum = 0.0f;
    for (int g = 0; g < groups; ++g) sum += *memory.sums(g * chunks + thread / CHUNK, thread % CHUNK);
    total = 0.0f;
    for (int w = 0; w < WARPS; ++w) total += memory.of_warp[1][w];
    static_cast<E*>(args.out)[(size_t(t) * args.heads + h) * D + thread] = from_float<E>(sum * (1.0f / total));
}

// Scores of the warp's rows with keys that stand behind them: -infinity. On the diagonal tile rows and keys count alike.
__device__ __forceinline__ void hide(float (&scores)[TILE / 8][4]) {
#pragma unroll
    for (int n = 0; n < TILE / 8; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e)
            if (fragment_column(n, e) > fragment_row(e)) scores[n][e] = -INFINITY;
}

// The softmax of two rows so far, as a lane sees it: of its own columns, but the maximum, which is of the whole rows.
template <int D>
struct Softmax {
    float highest[2] = {-INFINITY, -INFINITY}, total[2] = {}, sums[D / 8][4] = {};

    // Takes in the scores of another tile, and makes weights of them. The weights so far are brought down to the new
    // maximum. c = log2(e) / sqrt(D).
    __device__ __forceinline__ void take(float (&scores)[TILE / 8][4], float c) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            float most = highest[r];
#pragma unroll
            for (int n = 0; n < TILE / 8; ++n) most = fmaxf(most, fmaxf(scores[n][2 * r], scores[n][2 * r + 1]));
            most = fmaxf(most, __shfl_xor_sync(FULL_MASK, most, 1));
            most = fmaxf(most, __shfl_xor_sync(FULL_MASK, most, 2));
            const float shift = most * c, factor = power_of_two(highest[r] * c - shift);
            highest[r] = most;
            total[r] *= factor;
#pragma unroll
            for (int n = 0; n < TILE / 8; ++n)
#pragma unroll
                for (int e = 2 * r; e < 2 * r + 2; ++e) {
                    scores[n][e] = power_of_two(fmaf(scores[n][e], c, -shift));
                    total[r] += scores[n][e];
                }
#pragma unroll
            for (int b = 0; b < D / 8; ++b) sums[b][2 * r] *= factor, sums[b][2 * r + 1] *= factor;
        }
    }

    // Divides by the total.
    __device__ __forceinline__ void finish() {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            total[r] += __shfl_xor_sync(FULL_MASK, total[r], 1);
            total[r] += __shfl_xor_sync(FULL_MASK, total[r], 2);
            const float inverse = 1.0f / total[r];
#pragma unroll
            for (int b = 0; b < D / 8; ++b) sums[b][2 * r] *= inverse, sums[b][2 * r + 1] *= inverse;
        }
    }
};

template <typename E, int D>
__device__ __forceinline__ void forward_of(TileMemory<E>& memory, const AttentionArgs& args) {
    using T = Tile<E, D>;
    const TokenTile tile = tile_of_block(args, true);
    if (tile.length == 0) return;
    const int h = blockIdx.y, kv = h / (args.heads / args.kv_heads);
    const int width = qkv_width(args), token = tile.start + tile.first();
    const E* qkv = static_cast<const E*>(args.qkv) + size_t(tile.start) * width;
    const auto start_copy = [&](int j) {
        if (j <= tile.index) {
            const E* from = qkv + size_t(j) * TILE * width;
            Stage<E>& stage = memory.stages[j % 2];
            T::copy(stage.a, from + key_column(args, kv), width, tile.length - j * TILE);
            T::copy(stage.b, from + value_column(args, kv), width, tile.length - j * TILE);
        }
        commit_copies();
    };
    T::copy(memory.stages[1].a, qkv + size_t(tile.first()) * width + h * D, width, tile.rows());
    start_copy(0);
    wait_copies<0>();
    __syncthreads();
    uint32_t q[D / 16][4];
    T::own_rows(q, memory.stages[1].a);

    const float scale = 1.0f / sqrtf(float(D)), c = scale * LOG2_E;
    Softmax<D> softmax;
#pragma unroll 1
    for (int j = 0; j <= tile.index; ++j) {
        wait_copies<0>();
        __syncthreads();  // this tile has arrived for all, and all are done with what the other stage holds
        start_copy(j + 1);
        float scores[TILE / 8][4] = {};
        T::template times_rows<TILE>(scores, q, memory.stages[j % 2].a, 0);
        if (j == tile.index) hide(scores);
        softmax.take(scores, c);
        T::template add_weighed<TILE>(softmax.sums, scores, memory.stages[j % 2].b, 0);
    }
    softmax.finish();
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const int row = fragment_row(2 * r);
        if (threadIdx.x % 4 == 0 && row < tile.rows())
            args.lse[size_t(token + row) * args.heads + h] = softmax.highest[r] * scale + logf(softmax.total[r]);
    }
    __syncthreads();  // the stages become room for the sums
    E* out = static_cast<E*>(args.out) + (size_t(token) * args.heads + h) * D;
    store_rows<false, E, D>(out, args.heads * D, tile.rows(), softmax.sums,
                            memory.staged[threadIdx.x / WARP], args, token);
}

template <typename E>
__device__ __forceinline__ void forward(const AttentionArgs& args) {
    __shared__ TileMemory<E> memory;
    if (args.head_dim == 64) forward_of<E, 64>(memory, args);
    if (args.head_dim == 32) forward_of<E, 32>(memory, args);
    if (args.head_dim == 16) forward_of<E, 16>(memory, args);
}

#define KERNELS(A, E)                                                                                        \
    KERNEL(attention_forward_naive, A, E, forward_naive, 8)                                                  \
    KERNEL(attention_append_naive, A, E, append_naive, 8)                                                    \
    KERNEL(attention_append, A, E, append_chunks, 8)                                                         \
    KERNEL(attention_cached_naive, A, E, cached_naive, 8)                                                    \
    KERNEL(attention_cached, A, E, cached, 4)
KERNELS(f32, float)
KERNELS(bf16, __nv_bfloat16)
KERNELS(f16, __half)
KERNEL(attention_forward, f16, __half, forward, 3)
#if __CUDA_ARCH__ >= 800
KERNEL(attention_forward, bf16, __nv_bfloat16, forward, 3)
#endif
