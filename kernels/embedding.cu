// Token embedding: rows of a table, and the sum of gradients back into those rows.
//
//   embedding_forward    x[t] = w[ids[t]], widened
//   embedding_clear      dw = 0, unless step->accumulate
//   embedding_backward   dw[id] = (((dw[id] + dx[t0]) + dx[t1]) + ..), t0 < t1 < .. the tokens with that id
//
// Shapes     ids [T] u32; w [V, C] A; x, dx [T, C] f32; dw [V, C] f32. by_id [T] u32 lists the tokens by id, equal ids by
//            position; id_starts [T + 1] u32 where each of the step->distinct_ids begins in it, and the end.
//            A is f32, bf16 or f16. Row-major, contiguous.
// Requires   C % 8 == 0 and 16-byte aligned w, x, dx, dw (production rung); ids below V. Checked in
//            src/ops/embedding.rs, the ids where the tokenizer and the model are loaded.
// Mapping    forward: one warp per token. backward: one warp per distinct id and 128 columns. 4 warps per block; the grid
//            covers as many as there can be, those beyond step->tokens and step->distinct_ids are left. clear:
//            a fixed grid strides over dw.
// Numerics   additions in f32, in ascending t, without atomics: the same bits as src/ops/embedding.rs.
// Budget     embedding_*: 64 registers, 0 bytes shared, 8 blocks of 128 threads
// Bytes      embedding_forward: read sizeof(A)*T*C + 8*T, written 4*T*C; embedding_clear: read 0, written 4*V*C;
//            embedding_backward: read 4*T*C + 4*U*C + 4*ceil(C/128)*(2*T + 4*U), written 4*U*C. U distinct ids; the last
//            term is the lists'. All but the lists in 16-byte accesses.
// Ladder     v1 naive, one thread per token, per distinct id, per element: any C. v2 16-byte access: production.
#include "common.cuh"

constexpr int PER_LANE = 8;      // consecutive columns of a lane, forwards
constexpr int SUM_PER_LANE = 4;  // and backwards

__device__ __forceinline__ uint32_t warp_of_grid() {
    return blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
}
__device__ __forceinline__ uint32_t thread_of_grid() { return blockIdx.x * blockDim.x + threadIdx.x; }

template <typename E>
__device__ __forceinline__ void forward_naive(const StepParams* step, const uint32_t* __restrict__ ids,
                                              const E* __restrict__ w, float* __restrict__ x, int C) {
    const uint32_t t = thread_of_grid();
    if (t >= step->tokens) return;
    for (int c = 0; c < C; ++c) x[size_t(t) * C + c] = to_float(w[size_t(ids[t]) * C + c]);
}

template <typename E>
__device__ __forceinline__ void forward(const StepParams* step, const uint32_t* __restrict__ ids,
                                        const E* __restrict__ w, float* __restrict__ x, int C) {
    const uint32_t t = warp_of_grid();
    if (t >= step->tokens) return;
    w += size_t(ids[t]) * C;
    x += size_t(t) * C;
    for (int c = threadIdx.x % WARP * PER_LANE; c < C; c += WARP * PER_LANE) {
        const auto ws = load<PER_LANE>(w + c);
        Pack<float, PER_LANE> xs;
        for (int k = 0; k < PER_LANE; ++k) xs.v[k] = to_float(ws.v[k]);
        store(x + c, xs);
    }
}

extern "C" __global__ void __launch_bounds__(128)
embedding_clear_naive(const StepParams* step, float* __restrict__ dw, uint64_t n) {
    if (step->accumulate) return;
    for (uint64_t i = thread_of_grid(); i < n; i += gridDim.x * blockDim.x) dw[i] = 0.0f;
}

extern "C" __global__ void __launch_bounds__(128)
embedding_clear(const StepParams* step, float* __restrict__ dw, uint64_t n) {
    if (step->accumulate) return;
    const uint64_t stride = uint64_t(gridDim.x) * blockDim.x * 4;
    for (uint64_t i = uint64_t(thread_of_grid()) * 4; i < n; i += stride) store(dw + i, Pack<float, 4>{});
}

extern "C" __global__ void __launch_bounds__(128)
embedding_backward_naive(const StepParams* step, const uint32_t* __restrict__ ids, const uint32_t* __restrict__ by_id,
                         const uint32_t* __restrict__ id_starts, const float* __restrict__ dx,
                         float* __restrict__ dw, int C) {
    const uint32_t segment = thread_of_grid();
    if (segment >= step->distinct_ids) return;
    const uint32_t first = id_starts[segment], end = id_starts[segment + 1];
    dw += size_t(ids[by_id[first]]) * C;
    for (int c = 0; c < C; ++c) {
        float sum = dw[c];
        for (uint32_t i = first; i < end; ++i) sum += dx[size_t(by_id[i]) * C + c];
        dw[c] = sum;
    }
}

extern "C" __global__ void __launch_bounds__(128)
embedding_backward(const StepParams* step, const uint32_t* __restrict__ ids, const uint32_t* __restrict__ by_id,
                   const uint32_t* __restrict__ id_starts, const float* __restrict__ dx, float* __restrict__ dw,
                   int C) {
    const uint32_t tiles = (C + WARP * SUM_PER_LANE - 1) / (WARP * SUM_PER_LANE);
    const uint32_t segment = warp_of_grid() / tiles, tile = warp_of_grid() % tiles;
    const int c = (tile * WARP + threadIdx.x % WARP) * SUM_PER_LANE;
    if (segment >= step->distinct_ids || c >= C) return;
    const uint32_t first = id_starts[segment], end = id_starts[segment + 1];
    dw += size_t(ids[by_id[first]]) * C + c;
    auto sums = load<SUM_PER_LANE>(dw);
#pragma unroll 4  // so that several loads are under way; the additions stay in order
    for (uint32_t i = first; i < end; ++i) {
        const auto xs = load<SUM_PER_LANE>(dx + size_t(by_id[i]) * C + c);
        for (int k = 0; k < SUM_PER_LANE; ++k) sums.v[k] += xs.v[k];
    }
    store(dw, sums);
}

#define KERNELS(A, E)                                                                                        \
    extern "C" __global__ void __launch_bounds__(128) embedding_forward_##A(                                 \
        const StepParams* step, const uint32_t* ids, const E* w, float* x, int C) {                          \
        forward<E>(step, ids, w, x, C);                                                                      \
    }                                                                                                        \
    extern "C" __global__ void __launch_bounds__(128) embedding_forward_naive_##A(                           \
        const StepParams* step, const uint32_t* ids, const E* w, float* x, int C) {                          \
        forward_naive<E>(step, ids, w, x, C);                                                                \
    }
KERNELS(f32, float)
KERNELS(bf16, __nv_bfloat16)
KERNELS(f16, __half)
