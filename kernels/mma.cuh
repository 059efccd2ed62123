// What kernels on tensor cores share: asynchronous copies, matrices from shared memory, products. No kernel.
#pragma once
#include "common.cuh"

constexpr int CHUNK = 8;  // 16-bit elements of 16 bytes

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

// The same with 4 bytes.
__device__ __forceinline__ void copy_word(float* to, const float* from, bool inside) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(to)), "l"(from), "r"(inside ? 4 : 0)
                 : "memory");
#else
    *to = inside ? *from : 0.0f;
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

// Two neighbouring elements of a fragment, rounded to nearest.
template <typename E>
__device__ __forceinline__ uint32_t pack(float x, float y) {
    const Pack<E, 2> both{from_float<E>(x), from_float<E>(y)};
    return *reinterpret_cast<const uint32_t*>(&both);
}
