// What all kernels share: the step's parameters, 16-byte access, conversions, warp reductions. No kernel.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstddef>
#include <cstdint>

constexpr int WARP = 32;
constexpr unsigned FULL_MASK = 0xffffffffu;

// Mirrors of Rust structs; tests/cuda.rs holds the same offsets against the Rust side.
struct AdamWScalars {  // src/ops/adamw.rs
    float beta1, beta2, one_minus_beta1, one_minus_beta2;
    float step_size, eps, sqrt_bias_correction2, decay;
};
static_assert(sizeof(AdamWScalars) == 32, "AdamWScalars differs from src/ops/adamw.rs");

struct LossScale {  // src/ops/loss_scale.rs
    float value;
    uint32_t good_steps, growth_interval;
};
static_assert(sizeof(LossScale) == 12, "LossScale differs from src/ops/loss_scale.rs");

struct StepParams {  // src/backend/mod.rs, up to where the device keeps its own
    uint32_t tokens, sequences, supervised, distinct_ids;
    uint32_t accumulate;
    float inverse_denominator, max_grad_norm;
    AdamWScalars adamw;
    uint32_t noise_key[2];  // src/ops/noise.rs
    LossScale loss_scale;  // changed by grad_norm_finish
};
static_assert(offsetof(StepParams, adamw) == 28 && offsetof(StepParams, loss_scale) == 68, "StepParams: see src/backend");

struct GradNorm {  // src/ops/grad_norm.rs
    double norm;
    float scale;
    uint32_t skip;
};
static_assert(sizeof(GradNorm) == 16, "GradNorm differs from src/ops/grad_norm.rs");

// N elements that are moved by accesses of up to 16 bytes; the address is a multiple of the size, or of 16.
template <typename E, int N>
struct alignas(sizeof(E) * N < 16 ? sizeof(E) * N : 16) Pack {
    E v[N];
};

template <int N, typename E>
__device__ __forceinline__ Pack<E, N> load(const E* p) {
    return *reinterpret_cast<const Pack<E, N>*>(p);
}

template <typename E, int N>
__device__ __forceinline__ void store(E* p, const Pack<E, N>& x) {
    *reinterpret_cast<Pack<E, N>*>(p) = x;
}

// 16 bytes to global memory in one access, where the compiler would split a plain store.
template <typename E, int N>
__device__ __forceinline__ void store_whole(E* p, const Pack<E, N>& x) {
    static_assert(sizeof(x) == 16);
    const uint4 words = *reinterpret_cast<const uint4*>(&x);
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(words.x), "r"(words.y), "r"(words.z), "r"(words.w)
                 : "memory");
}

// A pointer that was itself read from memory; the compiler then knows that it is into global memory, which spares
// the slower generic access. Not for null pointers.
template <typename T>
__device__ __forceinline__ T* global(T* p) {
    __builtin_assume(__isGlobal(p));
    return p;
}

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }

// Rounds to nearest, ties to even.
template <typename E>
__device__ __forceinline__ E from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) { return x; }
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float x) { return __float2bfloat16_rn(x); }
template <>
__device__ __forceinline__ __half from_float<__half>(float x) { return __float2half_rn(x); }

// The pair (x, y) turned by the angle of (cos, sin), as rotary position embedding does: its first coordinate, its second.
__device__ __forceinline__ float turned_first(float x, float y, float cos, float sin) { return x * cos - y * sin; }
__device__ __forceinline__ float turned_second(float x, float y, float cos, float sin) { return y * cos + x * sin; }

// Sum over the 32 lanes of a full warp; every lane gets the same, order-fixed result.
__device__ __forceinline__ float warp_sum(float x) {
    for (int offset = WARP / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(FULL_MASK, x, offset);
    return x;
}

// Largest of the 32 lanes' values, in every lane.
__device__ __forceinline__ uint32_t warp_max(uint32_t x) {
#if __CUDA_ARCH__ >= 800
    return __reduce_max_sync(FULL_MASK, x);
#else
    for (int offset = WARP / 2; offset > 0; offset /= 2) x = max(x, __shfl_xor_sync(FULL_MASK, x, offset));
    return x;
#endif
}
__device__ __forceinline__ float warp_max(float x) {
    for (int offset = WARP / 2; offset > 0; offset /= 2) x = fmaxf(x, __shfl_xor_sync(FULL_MASK, x, offset));
    return x;
}
