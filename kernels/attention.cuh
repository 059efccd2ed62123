// What attention's kernels share: arguments, where a sequence begins and ends, the parts of the naive rung. No kernel.
#pragma once
#include "common.cuh"

struct AttentionArgs {  // src/ops/attention_launch.rs
    const StepParams* step;
    const uint32_t *cu_seqlens, *positions;
    const float *cos, *sin;
    const void* qkv;
    void* out;  // written by the forward pass, read by the backward pass
    float* lse;
    const void* dout;
    void* dqkv;
    float* delta;
    void *keys, *values;
    int32_t heads, kv_heads, head_dim;
    int32_t past, capacity;  // positions in the cache: in use, in all
    int32_t unused;
};
static_assert(sizeof(AttentionArgs) == 128, "AttentionArgs differs from src/ops/attention_launch.rs");

constexpr int WARPS = 4;  // of a block

// At least BLOCKS of them fit on a multiprocessor.
#define KERNEL(NAME, A, E, BODY, BLOCKS)                                                                     \
    extern "C" __global__ void __launch_bounds__(WARPS* WARP, BLOCKS)                                        \
        NAME##_##A(const __grid_constant__ AttentionArgs args) {                                             \
        BODY<E>(args);                                                                                       \
    }

__device__ __forceinline__ int qkv_width(const AttentionArgs& args) {
    return (args.heads + 2 * args.kv_heads) * args.head_dim;
}

// Column of qkv where a kv head's keys begin, and where its values do.
__device__ __forceinline__ int key_column(const AttentionArgs& args, int kv) {
    return (args.heads + kv) * args.head_dim;
}
__device__ __forceinline__ int value_column(const AttentionArgs& args, int kv) {
    return (args.heads + args.kv_heads + kv) * args.head_dim;
}

// The last of `n` numbers, which ascend from at most x on, that is at most x.
template <typename At>
__device__ __forceinline__ int last_up_to(At at, int n, int x) {
    int low = 0, high = n - 1;
    while (low < high) {
        const int middle = (low + high + 1) / 2;
        if (at(middle) <= x) low = middle;
        else high = middle - 1;
    }
    return low;
}

// Tokens start..end.
struct Sequence {
    int start, end;
};

// The one that holds token t; empty ones are passed over, as the last that begins at or before t is taken.
__device__ __forceinline__ Sequence sequence_of(const AttentionArgs& args, int t) {
    const auto start = [&](int s) { return int(args.cu_seqlens[s]); };
    const int s = last_up_to(start, args.step->sequences, t);
    return {start(s), start(s + 1)};
}

// The naive rung: a warp per row and head, lane l with columns l, l + 32, …

constexpr int MOST_COLUMNS = 4;  // of a lane: heads of at most 128

template <typename E>
__device__ __forceinline__ float dot(const E* a, const E* b, int n) {
    float sum = 0.0f;
    for (int i = 0; i < n; ++i) sum = fmaf(to_float(a[i]), to_float(b[i]), sum);
    return sum;
}

// sums += x of lane k · row's columns of this lane.
template <typename E>
__device__ __forceinline__ void add_row(float (&sums)[MOST_COLUMNS], float x, int k, const E* row, int D) {
    const float factor = __shfl_sync(FULL_MASK, x, k);
#pragma unroll
    for (int i = 0; i < MOST_COLUMNS; ++i) {
        const int c = threadIdx.x % WARP + i * WARP;
        if (c < D) sums[i] = fmaf(factor, to_float(row[c]), sums[i]);
    }
}
