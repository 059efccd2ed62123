// RMSNorm over the last axis (Zhang & Sennrich 2019, arXiv:1910.07467, eq. 4), of the fp32 residual stream.
//
//   rstd[t] = 1 / sqrt(mean_c x[t,c]^2 + eps)
//   y[t,c]  = A(w[c] * (x[t,c] * rstd[t]))
//
// Shapes     x [T, C] f32; w [C] A; y [T, C] A; rstd [T] f32. Row-major, contiguous. A is f32, bf16 or f16.
// Requires   C % 8 == 0 and 16-byte aligned x, w, y (production rung). Checked in src/ops/rmsnorm.rs, not
//            here.
// Mapping    one warp per row, 4 warps per block; the grid covers the largest T, rows from step->tokens on
//            are left.
// Numerics   sum of squares in f32: each lane its columns in order, then the lanes by halving
//            (deterministic). Correctly rounded root and division. One rounding to A per element, at the
//            store.
// Bytes      4*T*C read, sizeof(A)*(T*C + C) + 4*T moved besides; the second read of x is served by L1 or L2.
// Ladder     v1 naive, one thread per row: the GPU's oracle and the bench's baseline, for any C.
//            v2 one warp per row, 16-byte access: production.
#include "common.cuh"

constexpr int PER_LANE = 8;  // consecutive columns of a lane: 16 bytes of a 16-bit type, twice that of f32

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

#define KERNELS(A, E)                                                                                        \
    extern "C" __global__ void __launch_bounds__(128, 8) rmsnorm_forward_##A(                                \
        const StepParams* step, const float* x, const E* w, float eps, E* y, float* rstd, int C) {           \
        forward<E>(step, x, w, eps, y, rstd, C);                                                             \
    }                                                                                                        \
    extern "C" __global__ void __launch_bounds__(128) rmsnorm_forward_naive_##A(                             \
        const StepParams* step, const float* x, const E* w, float eps, E* y, float* rstd, int C) {           \
        forward_naive<E>(step, x, w, eps, y, rstd, C);                                                       \
    }
KERNELS(f32, float)
KERNELS(bf16, __nv_bfloat16)
KERNELS(f16, __half)
