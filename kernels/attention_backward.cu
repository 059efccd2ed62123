// Gradient of attention (attention.cu) and of the rotation before it.
//
//   delta[t,h] = dout[t,h]·out[t,h]
//   p = exp(s - lse[t,h]), s = q[t,h]·k[j,h/g] / sqrt(D);  ds = p (dout[t,h]·v[j,h/g] - delta[t,h]) / sqrt(D)
//   dq[t,h] = sum_j ds k[j,h/g];  dk[j,kv] = sum_h sum_t ds q[t,h];  dv[j,kv] = sum_h sum_t p dout[t,h]
//   dqkv = dq and dk turned back by positions[t], dv
//
// Shapes     as in attention.cu; dout [T, H·D] A; dqkv [T, (H + 2K)·D] A; delta [T, H] f32; positions [T]; cos, sin
//            [positions, D/2] f32. h runs over the g query heads of kv, t over the tokens from j on.
// Requires   D 16, 32 or 64, all buffers but delta and lse 16-byte aligned (production rung); D even, at most 128 (naive
//            rung). Checked in src/ops/attention_launch.rs, not here.
// Rows       T is step->tokens; rows beyond are neither read nor written.
// Numerics   all in f32 but p and ds, which are rounded to A before the three products; one rounding to A after the
//            rotation, at the store. Deterministic: no atomics, every sum has a fixed order.
// Mapping    attention_tiles.cuh. query: a block per 64 queries of one sequence and head, over tiles of 64 keys up to
//            its own. keys: a block per 64 keys of one sequence and kv head, over the group's heads and the tiles of 64
//            queries from its own on. p and ds in registers, where the next product takes them from. Scores and
//            dout·v are computed in both: seven products instead of five, for a dq without atomics.
// Budget     attention_backward_query: 168 registers, 32768 bytes shared, 3 blocks of 128 threads (sm_75: 2)
//            attention_backward_keys: 255 registers, 33792 bytes shared, 2 blocks of 128 threads (sm_75: 1)
// Main loop  attention_backward_query: 84 HMMA, 56 LDSM. A warp's 16 rows against 32 of the other side take 3*D/4 and
//            3*D/8, its own rows D/8 more, for D 64, 32 and 16.
//            attention_backward_keys: 112 HMMA, 70 LDSM. D and D/2, and D/8 more.
// Bytes      attention_backward_query: read H*(4*sizeof(A)*T*D + 2*sizeof(A)*keys*D + 4*T + 4*T*D), written
//            H*(sizeof(A)*T*D + 4*T); attention_backward_keys: read K*(2*sizeof(A)*T*D + 4*T*D) +
//            H*(2*sizeof(A)*queries*D + 8*queries), written 2*K*sizeof(A)*T*D. `keys` as in attention.cu, `queries` the
//            sum over tiles of 64 keys of the queries from the tile's start on: the tiles mostly from L2. dout is read
//            twice, for delta. 4*T*D are cos and sin. All but lse, delta, positions and cu_seqlens in 16-byte accesses.
// Order      attention_backward_query writes dq and delta; attention_backward_keys, after it, reads delta.
// Ladder     v1 naive, one warp per row and head.
//            v2 tiles on tensor cores: production.
#include "attention_tiles.cuh"

struct Gradient {
    float p, ds;
};

// p and ds, rounded to E, of one query and one key.
template <typename E>
__device__ __forceinline__ Gradient p_and_ds(const E* q, const E* k, const E* dout, const E* v, float lse, float delta,
                                             float scale, int D) {
    const float p = expf(dot(q, k, D) * scale - lse);
    const float ds = p * (dot(dout, v, D) - delta) * scale;
    return {to_float(from_float<E>(p)), to_float(from_float<E>(ds))};
}

// A warp's sums to their place; `turned`: after the rotation back. `row` is the warp's own.
template <typename E>
__device__ __forceinline__ void store_sums(E* to, const float (&sums)[MOST_COLUMNS], bool turned, float* row,
                                           const AttentionArgs& args, int t) {
    const int D = args.head_dim, half = D / 2, lane = threadIdx.x % WARP;
    const size_t angle = size_t(args.positions[t]) * half;
    __syncwarp();
#pragma unroll
    for (int i = 0; i < MOST_COLUMNS; ++i)
        if (lane + i * WARP < D) row[lane + i * WARP] = sums[i];
    __syncwarp();
    for (int c = lane; c < D; c += WARP) {
        const int i = c % half;
        const float x = row[i], y = row[i + half], cos = args.cos[angle + i], sin = -args.sin[angle + i];
        const float z = c < half ? turned_first(x, y, cos, sin) : turned_second(x, y, cos, sin);
        to[c] = from_float<E>(turned ? z : row[c]);
    }
}

template <typename E>
__device__ __forceinline__ void query_naive(const AttentionArgs& args) {
    __shared__ float rows[WARPS][WARP * MOST_COLUMNS];
    const int warp = blockIdx.x * WARPS + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int t = warp / args.heads, h = warp % args.heads;
    if (t >= int(args.step->tokens)) return;
    const int D = args.head_dim, kv = h / (args.heads / args.kv_heads);
    const size_t width = qkv_width(args), row = size_t(t) * args.heads + h;
    const E* qkv = static_cast<const E*>(args.qkv);
    const E *q = qkv + t * width + h * D, *dout = static_cast<const E*>(args.dout) + row * D;
    const E* out = static_cast<const E*>(args.out) + row * D;
    float delta = 0.0f;
    for (int c = lane; c < D; c += WARP) delta = fmaf(to_float(dout[c]), to_float(out[c]), delta);
    delta = warp_sum(delta);
    if (lane == 0) args.delta[row] = delta;

    const float scale = 1.0f / sqrtf(float(D)), lse = args.lse[row];
    float dq[MOST_COLUMNS] = {};
    for (int first = sequence_of(args, t).start; first <= t; first += WARP) {
        const E *k = qkv + first * width + key_column(args, kv), *v = qkv + first * width + value_column(args, kv);
        float ds = 0.0f;
        if (first + lane <= t)
            ds = p_and_ds<E>(q, k + lane * width, dout, v + lane * width, lse, delta, scale, D).ds;
        for (int j = 0; j < min(WARP, t + 1 - first); ++j) add_row(dq, ds, j, k + j * width, D);
    }
    store_sums(static_cast<E*>(args.dqkv) + t * width + h * D, dq, true, rows[threadIdx.x / WARP], args, t);
}

template <typename E>
__device__ __forceinline__ void keys_naive(const AttentionArgs& args) {
    __shared__ float rows[WARPS][WARP * MOST_COLUMNS];
    const int warp = blockIdx.x * WARPS + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int j = warp / args.kv_heads, kv = warp % args.kv_heads, group = args.heads / args.kv_heads;
    if (j >= int(args.step->tokens)) return;
    const int D = args.head_dim, end = sequence_of(args, j).end;
    const size_t width = qkv_width(args), out_width = size_t(args.heads) * D;
    const E* qkv = static_cast<const E*>(args.qkv);
    const E *k = qkv + j * width + key_column(args, kv), *v = qkv + j * width + value_column(args, kv);
    const float scale = 1.0f / sqrtf(float(D));
    float dk[MOST_COLUMNS] = {}, dv[MOST_COLUMNS] = {};
    for (int h = kv * group; h < (kv + 1) * group; ++h) {
        for (int first = j; first < end; first += WARP) {
            const E* q = qkv + first * width + h * D;
            const E* dout = static_cast<const E*>(args.dout) + first * out_width + h * D;
            const size_t at = size_t(first + lane) * args.heads + h;
            Gradient g = {0.0f, 0.0f};
            if (first + lane < end)
                g = p_and_ds<E>(q + lane * width, k, dout + lane * out_width, v, args.lse[at], args.delta[at], scale, D);
            for (int t = 0; t < min(WARP, end - first); ++t) {
                add_row(dk, g.ds, t, q + t * width, D);
                add_row(dv, g.p, t, dout + t * out_width, D);
            }
        }
    }
    E* to = static_cast<E*>(args.dqkv) + j * width;
    store_sums(to + key_column(args, kv), dk, true, rows[threadIdx.x / WARP], args, j);
    store_sums(to + value_column(args, kv), dv, false, rows[threadIdx.x / WARP], args, j);
}

// Products of the warp's rows with rows of the other side, and what becomes of them: p and ds.
struct Products {
    float p[AT_ONCE / 8][4] = {}, ds[AT_ONCE / 8][4] = {};
};

// From q·k and dout·v. c = scale·log2(e); `hidden`: the key stands behind the query.
__device__ __forceinline__ void to_p_and_ds(float& p, float& ds, float lse, float delta, bool hidden, float scale,
                                            float c) {
    p = hidden ? 0.0f : power_of_two(fmaf(p, c, -lse * LOG2_E));
    ds = hidden ? 0.0f : p * (ds - delta) * scale;
}

// delta of this lane's two rows of the tile, from chunks of their rows: two lanes have a row each of the warp's 16.
template <typename E, int D>
__device__ __forceinline__ void row_dots(float (&delta)[2], const AttentionArgs& args, const TokenTile& tile, int h) {
    const int lane = threadIdx.x % WARP, row = threadIdx.x / WARP * ROWS + lane / 2;
    const size_t at = size_t(tile.start + tile.first() + row) * args.heads + h;
    float sum = 0.0f;
    if (row < tile.rows()) {
        const E *dout = static_cast<const E*>(args.dout) + at * D, *out = static_cast<const E*>(args.out) + at * D;
        for (int c = lane % 2 * CHUNK; c < D; c += 2 * CHUNK) {
            const auto x = load<CHUNK>(dout + c), y = load<CHUNK>(out + c);
            for (int k = 0; k < CHUNK; ++k) sum = fmaf(to_float(x.v[k]), to_float(y.v[k]), sum);
        }
    }
    sum += __shfl_xor_sync(FULL_MASK, sum, 1);
    if (row < tile.rows() && lane % 2 == 0) args.delta[at] = sum;
    for (int r = 0; r < 2; ++r) delta[r] = __shfl_sync(FULL_MASK, sum, (lane / 4 + r * 8) * 2);
}

template <typename E, int D>
__device__ __forceinline__ void query_of(TileMemory<E>& memory, const AttentionArgs& args) {
    using T = Tile<E, D>;
    const TokenTile tile = tile_of_block(args, true);
    if (tile.length == 0) return;
    const int h = blockIdx.y, kv = h / (args.heads / args.kv_heads);
    const int width = qkv_width(args), out_width = args.heads * D, token = tile.start + tile.first();
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
    T::copy(memory.stages[1].b, static_cast<const E*>(args.dout) + size_t(token) * out_width + h * D, out_width, tile.rows());
    start_copy(0);
    float delta[2], lse[2] = {};
    row_dots<E, D>(delta, args, tile, h);
    for (int r = 0; r < 2; ++r)
        if (fragment_row(2 * r) < tile.rows()) lse[r] = args.lse[size_t(token + fragment_row(2 * r)) * args.heads + h];
    wait_copies<0>();
    __syncthreads();
    uint32_t q[D / 16][4], dout[D / 16][4];
    T::own_rows(q, memory.stages[1].a);
    T::own_rows(dout, memory.stages[1].b);

    const float scale = 1.0f / sqrtf(float(D)), c = scale * LOG2_E;
    float dq[D / 8][4] = {};
    for (int j = 0; j <= tile.index; ++j) {
        wait_copies<0>();
        __syncthreads();  // this tile has arrived for all, and all are done with what the other stage holds
        start_copy(j + 1);
        const Stage<E>& stage = memory.stages[j % 2];
#pragma unroll 1
        for (int first = 0; first < TILE; first += AT_ONCE) {
            Products of;
            T::template times_rows<AT_ONCE>(of.p, q, stage.a, first);
            T::template times_rows<AT_ONCE>(of.ds, dout, stage.b, first);
#pragma unroll
            for (int n = 0; n < AT_ONCE / 8; ++n)
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    const bool hidden = j == tile.index && first + fragment_column(n, e) > fragment_row(e);
                    to_p_and_ds(of.p[n][e], of.ds[n][e], lse[e / 2], delta[e / 2], hidden, scale, c);
                }
            T::template add_weighed<AT_ONCE>(dq, of.ds, stage.a, first);
        }
    }
    __syncthreads();  // the stages become room for the sums
    E* to = static_cast<E*>(args.dqkv) + size_t(token) * width + h * D;
    store_rows<true, E, D>(to, width, tile.rows(), dq, memory.staged[threadIdx.x / WARP], args, token);
}

// lse and delta of the queries in the two stages.
using RowNumbers = float[2][2][TILE];

// One tile of keys and values of one kv head; its rows meet the queries of the group's heads, head after head.
template <typename E, int D>
__device__ __forceinline__ void keys_of(TileMemory<E>& memory, RowNumbers& numbers, const AttentionArgs& args) {
    using T = Tile<E, D>;
    const TokenTile tile = tile_of_block(args, false);
    if (tile.length == 0) return;
    const int kv = blockIdx.y, group = args.heads / args.kv_heads;
    const int width = qkv_width(args), out_width = args.heads * D, token = tile.start + tile.first();
    const E* qkv = static_cast<const E*>(args.qkv) + size_t(tile.start) * width;
    const int per_head = tile.last_index() + 1 - tile.index, steps = group * per_head;
    const auto start_copy = [&](int step) {
        if (step < steps) {
            const int h = kv * group + step / per_head, first = (tile.index + step % per_head) * TILE;
            const int rows = tile.length - first, row = threadIdx.x % TILE;
            const size_t at = size_t(tile.start + first) * args.heads + h;
            Stage<E>& stage = memory.stages[step % 2];
            T::copy(stage.a, qkv + size_t(first) * width + h * D, width, rows);
            T::copy(stage.b, static_cast<const E*>(args.dout) + at * D, out_width, rows);
            const float* from = threadIdx.x < TILE ? args.lse : args.delta;
            copy_word(&numbers[step % 2][threadIdx.x / TILE][row], from + at + (row < rows ? row * args.heads : 0),
                      row < rows);
        }
        commit_copies();
    };
    T::copy(memory.stages[1].a, qkv + size_t(tile.first()) * width + key_column(args, kv), width, tile.rows());
    T::copy(memory.stages[1].b, qkv + size_t(tile.first()) * width + value_column(args, kv), width, tile.rows());
    start_copy(0);
    wait_copies<0>();
    __syncthreads();
    uint32_t k[D / 16][4], v[D / 16][4];
    T::own_rows(k, memory.stages[1].a);
    T::own_rows(v, memory.stages[1].b);

    const float scale = 1.0f / sqrtf(float(D)), c = scale * LOG2_E;
    float dk[D / 8][4] = {}, dv[D / 8][4] = {};
    for (int step = 0; step < steps; ++step) {
        wait_copies<0>();
        __syncthreads();  // this tile has arrived for all, and all are done with what the other stage holds
        start_copy(step + 1);
        const Stage<E>& stage = memory.stages[step % 2];
        const auto& [lse, delta] = numbers[step % 2];
        const bool diagonal = step % per_head == 0;
#pragma unroll 1
        for (int first = 0; first < TILE; first += AT_ONCE) {
            Products of;  // rows are keys, columns queries
            T::template times_rows<AT_ONCE>(of.p, k, stage.a, first);
            T::template times_rows<AT_ONCE>(of.ds, v, stage.b, first);
#pragma unroll
            for (int n = 0; n < AT_ONCE / 8; ++n) {
                const int column = first + fragment_column(n, 0);
                const auto lses = load<2>(lse + column), deltas = load<2>(delta + column);
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    const bool hidden = diagonal && column + e % 2 < fragment_row(e);
                    to_p_and_ds(of.p[n][e], of.ds[n][e], lses.v[e % 2], deltas.v[e % 2], hidden, scale, c);
                }
            }
            T::template add_weighed<AT_ONCE>(dv, of.p, stage.b, first);
            T::template add_weighed<AT_ONCE>(dk, of.ds, stage.a, first);
        }
    }
    __syncthreads();  // the stages become room for the sums
    E* to = static_cast<E*>(args.dqkv) + size_t(token) * width;
    float* staged = memory.staged[threadIdx.x / WARP];
    store_rows<true, E, D>(to + key_column(args, kv), width, tile.rows(), dk, staged, args, token);
    store_rows<false, E, D>(to + value_column(args, kv), width, tile.rows(), dv, staged, args, token);
}

template <typename E>
__device__ __forceinline__ void query(const AttentionArgs& args) {
    __shared__ TileMemory<E> memory;
    if (args.head_dim == 64) query_of<E, 64>(memory, args);
    if (args.head_dim == 32) query_of<E, 32>(memory, args);
    if (args.head_dim == 16) query_of<E, 16>(memory, args);
}

template <typename E>
__device__ __forceinline__ void keys(const AttentionArgs& args) {
    __shared__ TileMemory<E> memory;
    __shared__ alignas(16) RowNumbers numbers;
    if (args.head_dim == 64) keys_of<E, 64>(memory, numbers, args);
    if (args.head_dim == 32) keys_of<E, 32>(memory, numbers, args);
    if (args.head_dim == 16) keys_of<E, 16>(memory, numbers, args);
}

#define KERNELS(A, E)                                                                                        \
    KERNEL(attention_backward_query_naive, A, E, query_naive, 4)                                             \
    KERNEL(attention_backward_keys_naive, A, E, keys_naive, 4)
KERNELS(f32, float)
KERNELS(bf16, __nv_bfloat16)
KERNELS(f16, __half)
#define PRODUCTION(A, E)                                                                                     \
    KERNEL(attention_backward_query, A, E, query, 3)                                                         \
    KERNEL(attention_backward_keys, A, E, keys, 2)
PRODUCTION(f16, __half)
#if __CUDA_ARCH__ >= 800
PRODUCTION(bf16, __nv_bfloat16)
#endif
