// RMSNorm over the last axis (Zhang & Sennrich 2019, arXiv:1910.07467, eq. 4), of the fp32 residual stream.
//
//   rmsnorm_forward           rstd[t] = 1 / sqrt(mean_c x[t,c]^2 + eps)
//                             y[t,c]  = A(w[c] * (x[t,c] * rstd[t]))
//   rmsnorm_backward          dot[t]   = sum_c w[c]*dy[t,c]*x[t,c]
//                             dx[t,c] += rstd[t] * (w[c]*dy[t,c] - x[t,c] * dot[t]*rstd[t]^2/C); rounded = A(dx)
//                             partials[b,c] = sum of dy[t,c] * (x[t,c]*rstd[t]) over the rows t of block b
//   rmsnorm_backward_finish   dw[c] = sum_b partials[b,c], added to where step->accumulate says so
//
// Shapes     x, dx [T, C] f32; w [C] A; y, dy, rounded [T, C] A; rstd [T] f32; partials [ceil(T/32), C] f32; dw [C] f32.
//            Row-major, contiguous. A is f32, bf16 or f16. `rounded` may be null.
// Requires   C % 8 == 0, backwards C <= 4096, and 16-byte aligned buffers but rstd and dw (production rung). Checked in
//            src/ops/rmsnorm.rs, not here.
// Mapping    forward: one warp per row, 4 warps per block. backward: one block per 32 rows, one after the other, a
//            thread per 8 columns, whose part of the weight's gradient stays in registers; the next row is loaded before
//            the block meets to add up `dot`. finish: 32 columns per block, 32 groups of partials side by side. The
//            grid covers the largest T, rows from step->tokens on are left.
// Numerics   f32. Sum of squares: each lane its columns in order, then the lanes by halving; dot the same, then the
//            warps in order. Partials in ascending t, each operation rounded: the bits of src/ops/rmsnorm.rs. Their sum
//            by groups (production). All orders are fixed. Correctly rounded root and division. One rounding to A per
//            element, at the store.
// Budget     rmsnorm_forward: 64 registers, 0 bytes shared, 8 blocks of 128 threads
//            rmsnorm_backward: 128 registers, 128 bytes shared, 1 block of 512 threads: the widest rows, or more of fewer
//            rmsnorm_backward_finish: 64 registers, 4096 bytes shared, 4 blocks of 256 threads
// Bytes      rmsnorm_forward: read 8*T*C + sizeof(A)*T*C, written sizeof(A)*T*C + 4*T;
//            rmsnorm_backward: read 8*T*C + sizeof(A)*(T*C + C*ceil(T/32)) + 4*T*ceil(C/256), written
//            4*T*C + sizeof(A)*T*C + 4*C*ceil(T/32); rmsnorm_backward_finish: read 4*C*ceil(T/32) + 36*ceil(C/32) + G*4*C,
//            written 4*C. Forward reads x twice and w once per row, of which L1 or L2 serve 4*T*C and all but w's first.
//            G is 1 where it adds, else 0. All but rstd, and dw, in 16-byte accesses. Four bytes for each element of the residual stream and its
//            gradient where a 16-bit stream would have two: they are f32 so that sums over layers are not rounded to A.
// Ladder     v1 naive, one thread per row: the GPU's oracle and the bench's baseline, for any C. Backwards one warp for
//            32 rows, a thread per row and then per column.
//            v2 as above, 16-byte access: production.
#include "common.cuh"

constexpr int PER_LANE = 8;           // consecutive columns of a lane: 16 bytes of a 16-bit type, twice that of f32
constexpr int ROWS_PER_PARTIAL = 32;  // src/ops/rmsnorm.rs
constexpr int MOST_THREADS = 512;     // of a block, backwards
constexpr int GROUPS = 32;            // of partials that are added up side by side

template <typename E>
__device__ __forceinline__ void forward_naive(const StepParams* step, const float* __restrict__ x,
                                              const E* __restrict__ w, float eps, E* __restrict__ y,
                                              float* __restrict__ rstd, int C) {
    const uint32_t t = blockIdx.x * blockDim.x + threadIdx.x;
    if (t >= step->tokens) return;
    x += size_t(t) * C;
    float ss = 0.0f;
    for (int c = 0; c < C; ++c) ss += x[c] * x[c];
    const float r = 1.0f / sqrtf(ss / C + eps);
    for (int c = 0; c < C; ++c) y[size_t(t) * C + c] = from_float<E>(to_float(w[c]) * (x[c] * r));
    rstd[t] = r;
}

template <typename E>
__device__ __forceinline__ void forward(const StepParams* step, const float* __restrict__ x,
                                        const E* __restrict__ w, float eps, E* __restrict__ y,
                                        float* __restrict__ rstd, int C) {
    const uint32_t t = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (t >= step->tokens) return;  // uniform per warp, so warp_sum below has all 32 lanes
    const int lane = threadIdx.x % WARP;
    x += size_t(t) * C;
    y += size_t(t) * C;

    float ss = 0.0f;
    for (int c = lane * PER_LANE; c < C; c += WARP * PER_LANE) {
        const auto xs = load<PER_LANE>(x + c);
        for (int k = 0; k < PER_LANE; ++k) ss += xs.v[k] * xs.v[k];
    }
    const float r = 1.0f / sqrtf(warp_sum(ss) / C + eps);

    for (int c = lane * PER_LANE; c < C; c += WARP * PER_LANE) {
        const auto xs = load<PER_LANE>(x + c);
        const auto ws = load<PER_LANE>(w + c);
        Pack<E, PER_LANE> ys;
        for (int k = 0; k < PER_LANE; ++k) ys.v[k] = from_float<E>(to_float(ws.v[k]) * (xs.v[k] * r));
        store(y + c, ys);
    }
    if (lane == 0) rstd[t] = r;
}

// What a gradient dy adds to dw, rounded after each operation as on the CPU.
__device__ __forceinline__ float add_weight_gradient(float sum, float dy, float x, float r) {
    return __fadd_rn(sum, __fmul_rn(dy, __fmul_rn(x, r)));
}

template <typename E>
__device__ __forceinline__ void backward_naive(const StepParams* step, const float* __restrict__ x,
                                               const E* __restrict__ w, const float* __restrict__ rstd,
                                               const E* __restrict__ dy, float* __restrict__ dx,
                                               E* __restrict__ rounded, float* __restrict__ partials, int C) {
    const uint32_t first = blockIdx.x * ROWS_PER_PARTIAL, end = min(first + ROWS_PER_PARTIAL, step->tokens);
    const uint32_t t = first + threadIdx.x;
    if (t < end) {
        const size_t row = size_t(t) * C;
        float dot = 0.0f;
        for (int c = 0; c < C; ++c) dot += to_float(w[c]) * to_float(dy[row + c]) * x[row + c];
        const float r = rstd[t], along = dot * r * r / C;
        for (int c = 0; c < C; ++c) {
            const float d = dx[row + c] + r * (to_float(w[c]) * to_float(dy[row + c]) - x[row + c] * along);
            dx[row + c] = d;
            if (rounded) rounded[row + c] = from_float<E>(d);
        }
    }
    if (first >= end) return;
    for (int c = threadIdx.x; c < C; c += blockDim.x) {
        float sum = 0.0f;
        for (uint32_t t = first; t < end; ++t) {
            const size_t i = size_t(t) * C + c;
            sum = add_weight_gradient(sum, to_float(dy[i]), x[i], rstd[t]);
        }
        partials[size_t(blockIdx.x) * C + c] = sum;
    }
}

// Sum over the block, in every thread. `sums` must be another one at the next call.
__device__ __forceinline__ float block_sum(float x, float* sums) {
    x = warp_sum(x);
    if (threadIdx.x % WARP == 0) sums[threadIdx.x / WARP] = x;
    __syncthreads();
    float total = 0.0f;
    for (int i = 0; i < blockDim.x / WARP; ++i) total += sums[i];
    return total;
}

template <typename E>
__device__ __forceinline__ void backward(const StepParams* step, const float* __restrict__ x,
                                         const E* __restrict__ w, const float* __restrict__ rstd,
                                         const E* __restrict__ dy, float* __restrict__ dx,
                                         E* __restrict__ rounded, float* __restrict__ partials, int C) {
    __shared__ float sums[2][MOST_THREADS / WARP];
    const uint32_t first = blockIdx.x * ROWS_PER_PARTIAL, end = min(first + ROWS_PER_PARTIAL, step->tokens);
    const int c = threadIdx.x * PER_LANE;
    const bool inside = c < C;  // the others only take part in the sums
    Pack<E, PER_LANE> ws = {}, next_dy = {};
    Pack<float, PER_LANE> next_x = {}, dw = {};
    const auto load_row = [&](uint32_t t) {
        if (!inside || t >= end) return;
        next_x = load<PER_LANE>(x + size_t(t) * C + c);
        next_dy = load<PER_LANE>(dy + size_t(t) * C + c);
    };
    if (inside) ws = load<PER_LANE>(w + c);
    load_row(first);
    for (uint32_t t = first; t < end; ++t) {
        const auto xs = next_x;
        const auto ys = next_dy;
        const size_t at = size_t(t) * C + c;
        const float r = rstd[t];
        Pack<float, PER_LANE> ds = {};
        if (inside) ds = load<PER_LANE>(dx + at);
        load_row(t + 1);
        float dot = 0.0f;
        for (int k = 0; k < PER_LANE; ++k) dot += to_float(ws.v[k]) * to_float(ys.v[k]) * xs.v[k];
        for (int k = 0; k < PER_LANE; ++k)
            dw.v[k] = add_weight_gradient(dw.v[k], to_float(ys.v[k]), xs.v[k], r);
        const float along = block_sum(dot, sums[t % 2]) * r * r / C;
        if (!inside) continue;
        Pack<E, PER_LANE> as;
        for (int k = 0; k < PER_LANE; ++k) {
            ds.v[k] += r * (to_float(ws.v[k]) * to_float(ys.v[k]) - xs.v[k] * along);
            as.v[k] = from_float<E>(ds.v[k]);
        }
        store(dx + at, ds);
        if (rounded) store(rounded + at, as);
    }
    if (inside && first < end) store(partials + size_t(blockIdx.x) * C + c, dw);
}

__device__ __forceinline__ int partials_in_use(const StepParams* step) {
    return int((step->tokens + ROWS_PER_PARTIAL - 1) / ROWS_PER_PARTIAL);
}

extern "C" __global__ void __launch_bounds__(128)
rmsnorm_backward_finish_naive(const StepParams* step, const float* __restrict__ partials, float* __restrict__ dw, int C) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= C) return;
    float sum = step->accumulate ? dw[c] : 0.0f;
    for (int b = 0; b < partials_in_use(step); ++b) sum += partials[size_t(b) * C + c];
    dw[c] = sum;
}

extern "C" __global__ void __launch_bounds__(256)
rmsnorm_backward_finish(const StepParams* step, const float* __restrict__ partials, float* __restrict__ dw, int C) {
    constexpr int COLUMNS = 32, PER_THREAD = 4;
    __shared__ Pack<float, PER_THREAD> sums[GROUPS][COLUMNS / PER_THREAD];
    const int pack = threadIdx.x % (COLUMNS / PER_THREAD), group = threadIdx.x / (COLUMNS / PER_THREAD);
    const int c = blockIdx.x * COLUMNS + pack * PER_THREAD, blocks = partials_in_use(step);
    Pack<float, PER_THREAD> sum = {};
    if (c < C) {
#pragma unroll 4
        for (int b = group; b < blocks; b += GROUPS) {
            const auto part = load<PER_THREAD>(partials + size_t(b) * C + c);
            for (int k = 0; k < PER_THREAD; ++k) sum.v[k] += part.v[k];
        }
    }
    sums[group][pack] = sum;
    __syncthreads();
    const int column = blockIdx.x * COLUMNS + threadIdx.x;
    if (threadIdx.x >= COLUMNS || column >= C) return;
    float total = 0.0f;
    for (int g = 0; g < GROUPS; ++g) total += sums[g][threadIdx.x / PER_THREAD].v[threadIdx.x % PER_THREAD];
    dw[column] = step->accumulate ? dw[column] + total : total;
}

#define KERNELS(A, E)                                                                                        \
    extern "C" __global__ void __launch_bounds__(128, 8) rmsnorm_forward_##A(                                \
        const StepParams* step, const float* x, const E* w, float eps, E* y, float* rstd, int C) {           \
        forward<E>(step, x, w, eps, y, rstd, C);                                                             \
    }                                                                                                        \
    extern "C" __global__ void __launch_bounds__(128) rmsnorm_forward_naive_##A(                             \
        const StepParams* step, const float* x, const E* w, float eps, E* y, float* rstd, int C) {           \
        forward_naive<E>(step, x, w, eps, y, rstd, C);                                                       \
    }                                                                                                        \
    extern "C" __global__ void __launch_bounds__(MOST_THREADS) rmsnorm_backward_##A(                         \
        const StepParams* step, const float* x, const E* w, const float* rstd, const E* dy, float* dx,       \
        E* rounded, float* partials, int C) {                                                                \
        backward<E>(step, x, w, rstd, dy, dx, rounded, partials, C);                                         \
    }                                                                                                        \
    extern "C" __global__ void __launch_bounds__(WARP) rmsnorm_backward_naive_##A(                           \
        const StepParams* step, const float* x, const E* w, const float* rstd, const E* dy, float* dx,       \
        E* rounded, float* partials, int C) {                                                                \
        backward_naive<E>(step, x, w, rstd, dy, dx, rounded, partials, C);                                   \
    }
KERNELS(f32, float)
KERNELS(bf16, __nv_bfloat16)
KERNELS(f16, __half)
