// nvcc: -fmad=false
// What adapters (LoRA, Hu et al. 2021, arXiv:2106.09685) need besides their products, and noise on the embedding
// (NEFTune, Jain et al. 2023, arXiv:2310.05914). Random numbers are noise.cuh's.
//
//   dropout           y[t,n] = A(x[t,n]*m(t,n))                  m is factor where number(t, n) >= threshold, else 0
//   embedding_noise   x[t,c] += u(t,c)*(alpha/sqrt(L*C))         u from -1 up to 1 in steps of 2^-23; L tokens of t's
//                                                                sequence
//   spread            wide[o,column+j] = A(factor*narrow[o,j])   j < r; the other columns are left
//   gather            narrow[o,j] = factor*wide[o,column+j]
//
// Shapes     dropout: x, y [T, N] A. embedding_noise: x [T, C] f32, cu_seqlens [sequences + 1] u32. spread: narrow [O, r]
//            f32, wide [O, R] A. gather: both f32. Row-major, contiguous. A is f32, bf16 or f16. T is step->tokens.
// Requires   N % 8 == 0, C % 8 == 0, 16-byte aligned x and y (production rung); column + r <= R. Checked in
//            src/ops/noise.rs and src/ops/places.rs, not here.
// Mapping    dropout, embedding_noise: one warp per row, 4 warps per block; the grid covers the most rows there can be.
//            spread, gather: one thread per element of narrow.
// Numerics   every operation rounded by itself (-fmad=false, correctly rounded division and root): the bits of
//            src/ops/noise.rs and src/ops/places.rs.
// Budget     dropout: 64 registers, 0 bytes shared, 8 blocks of 128 threads
//            embedding_noise: 64 registers, 0 bytes shared, 8 blocks of 128 threads
//            spread: 64 registers, 0 bytes shared, 8 blocks of 128 threads
//            gather: 64 registers, 0 bytes shared, 8 blocks of 128 threads
// Bytes      dropout: read sizeof(A)*T*N + 12*T, written sizeof(A)*T*N; embedding_noise: read 4*T*C + 32*T, written
//            4*T*C; spread: read 4*O*r, written sizeof(A)*O*r; gather: read 4*O*r, written 4*O*r. The step's parameters
//            and the search for a sequence once per row. dropout and embedding_noise in 16-byte accesses; in spread and
//            gather columns may begin anywhere, and the matrices are small.
// Ladder     v1 naive, an element per lane: any width. v2 16 bytes per lane: production. spread and gather have one.
#include "noise.cuh"

constexpr int THREADS = 128;
constexpr uint32_t EMBEDDING = 0xffffffffu;  // the site of its noise; masks count from 0

__device__ __forceinline__ uint32_t row_of_warp() { return blockIdx.x * (THREADS / WARP) + threadIdx.x / WARP; }

template <typename E, int COLUMNS>
__device__ __forceinline__ void dropped(const StepParams* step, const E* __restrict__ x, E* __restrict__ y, int N,
                                        const Dropout& dropout) {
    const uint32_t t = row_of_warp();
    if (t >= step->tokens) return;
    const uint32_t key = row_key(step, dropout.site, t);
    for (int n = threadIdx.x % WARP * COLUMNS; n < N; n += WARP * COLUMNS) {
        auto row = load<COLUMNS>(x + size_t(t) * N + n);
        for (int k = 0; k < COLUMNS; ++k) row.v[k] = from_float<E>(to_float(row.v[k]) * dropout.at(key, n + k));
        store(y + size_t(t) * N + n, row);
    }
}

// Tokens of the sequence that holds token t: the last that begins at or before it, so empty ones are passed over.
__device__ __forceinline__ uint32_t length_of_sequence(const uint32_t* cu_seqlens, int sequences, uint32_t t) {
    int low = 0, high = sequences - 1;
    while (low < high) {
        const int middle = (low + high + 1) / 2;
        if (cu_seqlens[middle] <= t) low = middle;
        else high = middle - 1;
    }
    return cu_seqlens[low + 1] - cu_seqlens[low];
}

template <int COLUMNS>
__device__ __forceinline__ void noise(const StepParams* step, const uint32_t* __restrict__ cu_seqlens, float alpha,
                                      float* __restrict__ x, int C) {
    const uint32_t t = row_of_warp();
    if (t >= step->tokens) return;
    const float length = float(length_of_sequence(cu_seqlens, int(step->sequences), t));
    const float scale = alpha / sqrtf(length * float(C));
    const uint32_t key = row_key(step, EMBEDDING, t);
    for (int c = threadIdx.x % WARP * COLUMNS; c < C; c += WARP * COLUMNS) {
        auto row = load<COLUMNS>(x + size_t(t) * C + c);
        for (int k = 0; k < COLUMNS; ++k) {
            const float u = float(number(key, c + k) >> 8) * (2.0f / 16777216.0f) - 1.0f;
            row.v[k] += u * scale;
        }
        store(x + size_t(t) * C + c, row);
    }
}

// An element of narrow, and its place in wide.
struct Places {
    int elements, r, R, column;
    __device__ __forceinline__ int element() const { return blockIdx.x * THREADS + threadIdx.x; }
    __device__ __forceinline__ size_t place(int i) const { return size_t(i / r) * R + column + i % r; }
};

template <typename E>
__device__ __forceinline__ void spread(const float* __restrict__ narrow, E* __restrict__ wide, const Places& places,
                                       float factor) {
    const int i = places.element();
    if (i < places.elements) wide[places.place(i)] = from_float<E>(factor * narrow[i]);
}

extern "C" __global__ void __launch_bounds__(THREADS, 8)
    gather(const float* __restrict__ wide, float* __restrict__ narrow, int elements, int r, int R, int column,
           float factor) {
    const Places places{elements, r, R, column};
    const int i = places.element();
    if (i < elements) narrow[i] = factor * wide[places.place(i)];
}

#define NOISE(RUNG, COLUMNS)                                                                                 \
    extern "C" __global__ void __launch_bounds__(THREADS, 8) embedding_noise##RUNG(                          \
        const StepParams* step, const uint32_t* cu_seqlens, float alpha, float* x, int C) {                  \
        noise<COLUMNS>(step, cu_seqlens, alpha, x, C);                                                       \
    }
#define DROPOUT(NAME, E, COLUMNS)                                                                            \
    extern "C" __global__ void __launch_bounds__(THREADS, 8) NAME(                                           \
        const StepParams* step, const E* x, E* y, int N, uint32_t site, uint32_t threshold, float factor) {  \
        dropped<E, COLUMNS>(step, x, y, N, Dropout{site, threshold, factor});                                \
    }
#define KERNELS(A, E)                                                                                        \
    DROPOUT(dropout_##A, E, 16 / sizeof(E))                                                                  \
    DROPOUT(dropout_naive_##A, E, 1)                                                                         \
    extern "C" __global__ void __launch_bounds__(THREADS, 8) spread_##A(                                     \
        const float* narrow, E* wide, int elements, int r, int R, int column, float factor) {                \
        spread<E>(narrow, wide, Places{elements, r, R, column}, factor);                                     \
    }
NOISE(, 4)
NOISE(_naive, 1)
KERNELS(f32, float)
KERNELS(bf16, __nv_bfloat16)
KERNELS(f16, __half)
