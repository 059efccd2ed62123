// Products with a weight W of a linear layer, on tensor cores, and what is fused with them. O outputs, I inputs.
//
//   linear                   y  = x·Wᵀ             x  [T, I] A, W [O, I] A, y [T, O] A
//   linear_wide              y  = x·Wᵀ             y  [T, O] f32: logits
//   linear_residual          y  = residual + (x·Wᵀ + bias)
//                                                  residual, y [T, O] f32; bias [O] A or null: none
//   linear_rope              y  = rope(x·Wᵀ + bias)
//                                                  y  [T, O] A; the first `turned` columns are heads of D, rotated by
//                                                  positions[t] (Su et al. 2021, arXiv:2104.09864; halves convention)
//   linear_swiglu            y  = x·Wᵀ + bias, act = silu(gate)·up (Shazeer 2020, arXiv:2002.05202)
//                                                  y  [T, O] A: gate, up; act [T, O/2] A, from the rounded y
//   linear_input_gradient    dx = dy·W             dy [T, O] A, dx [T, I] A
//   linear_swiglu_backward   d  = A(dy·W)          dy [T, O] A, W [O, I]; from y (gate, up) [T, 2I] A:
//                                                  act = silu(gate)·up where act is not null; dgate = d·up·silu'(gate); dup = d·silu(gate)
//   linear_weight_gradient   dW = dyᵀ·x            dW [O, I] f32; added to where step->accumulate says so
//   linear_weight_gradient_finish                  the same, of partial sums
//
// A is bf16 (compute capability 8.0 and up) or f16; naive f32 too. Row-major, contiguous.
// Adapter    Where args.left is not null, a product of rank K (LoRA, Hu et al. 2021, arXiv:2106.09685) comes before the main
//            one, in the same sums: residual, rope and swiglu have left·rightᵀ + x·Wᵀ, left [T, K] A, right [O, K] A; the
//            gradients of the input (left·right)∘mask + dy·W, right [K, I] A, with the mask of noise.cuh.
// Requires   K % 8 == 0, O % 8 == 0, I % 8 == 0 (SwiGLU: of the gate), D 16, 32 or 64, all buffers 16-byte aligned
//            (production rung). Checked in src/ops/linear_launch.rs, not here.
// Rows       T is step->tokens; or, for a chunk of the head's rows, what step->supervised leaves from args.first on, at
//            most args.rows; or args.rows. The grid covers the most; rows beyond are neither read nor written.
// Mapping    gemm.cuh: a tile of C per block. 128×128; where the name says so, 128×64 or 64×64, of the products that have
//            few tiles in a SmolLM2's step; src/cuda/cut.rs chooses. linear_swiglu: 64 columns of gate, the same 64 of up.
// Splits     A weight gradient has few tiles and sums over many rows. Where args.splits > 1, block z of a tile sums the
//            z-th part of the rows in use, an equal number of whole k-steps, into partials [splits, O, I] f32;
//            linear_weight_gradient_finish adds up the parts that have rows, z ascending, then the old gradient.
// Numerics   C in f32, an adapter's part first, and its mask one multiplication of the sums so far; bias, then residual
//            or old gradient added in f32; one rounding to A per element, at the store, and where "A" stands above.
//            expf, correctly rounded division.
// Budget     linear*_128x64: 168 registers, 36864 bytes shared, 3 blocks of 128 threads (sm_75: 2, sm_86: 2, sm_89: 2, sm_120: 2)
//            linear_input*_64x64, linear_swiglu_b*_64x64: 168 registers, 24576 bytes shared, 3 blocks of 128 threads (sm_80: 4, sm_86: 4, sm_89: 4, sm_90: 4, sm_120: 4)
//            linear*_64x64: 128 registers, 24576 bytes shared, 4 blocks of 128 threads (sm_75: 3)
//            linear_weight_gradient_finish: 64 registers, 0 bytes shared, 8 blocks of 128 threads
//            linear*: 255 registers, 49152 bytes shared, 2 blocks of 128 threads
// Main loop  linear*_128x64: 32 HMMA, 12 LDSM
//            linear*_64x64: 16 HMMA, 10 LDSM
//            linear_weight_gradient_finish: 0 HMMA, 0 LDSM
//            linear*: 64 HMMA, 16 LDSM. Twice those per 16 of K in gemm.cuh, as a stage is two of them.
// Bytes      linear: read sizeof(A)*(T*I*ceil(O/columns) + O*I*ceil(T/rows)), written sizeof(A)*T*O;
//            linear_wide: read sizeof(A)*(T*I*ceil(O/columns) + O*I*ceil(T/rows)), written 4*T*O;
//            linear_residual: read sizeof(A)*(T*(I+K)*ceil(O/columns) + O*(I+K)*ceil(T/rows)) + 4*T*O, written 4*T*O;
//            linear_rope: read sizeof(A)*(T*(I+K)*ceil(O/columns) + O*(I+K)*ceil(T/rows)) + 4*T*R, written sizeof(A)*T*O;
//            linear_swiglu: read sizeof(A)*(T*(I+K)*ceil(O/columns) + O*(I+K)*ceil(T/rows)), written sizeof(A)*(T*O + T*O/2);
//            linear_input_gradient: read sizeof(A)*(T*(O+K)*ceil(I/columns) + (O+K)*I*ceil(T/rows)), written sizeof(A)*T*I;
//            linear_swiglu_backward: read sizeof(A)*(T*(O+K)*ceil(I/columns) + (O+K)*I*ceil(T/rows) + 2*T*I), written
//            3*sizeof(A)*T*I; linear_weight_gradient: read sizeof(A)*(T*O*ceil(I/columns) + T*I*ceil(O/rows)) + G*4*O*I,
//            written 4*S*O*I; linear_weight_gradient_finish: read 4*S*O*I + G*4*O*I, written 4*O*I. Rows and columns
//            are those of the tile. R columns are rotated, two by each 8 bytes of cos and sin; G is 1 in the kernel that
//            adds to an old gradient, else 0; K is 0 without an adapter; S parts have rows. An operand is read once per
//            tile of the other, as shared memory holds no more of it: L2 serves all but the first. All but positions in
//            16-byte accesses. Without act, swiglu_backward writes a third less. A bias is read again for every row of the tile, from L1.
// Ladder     v1 naive, one thread per element of C (rope: per pair; SwiGLU: per element of act).
//            v2 tiles in shared memory, tensor cores: production.
#include <type_traits>

#include "gemm.cuh"
#include "swiglu.cuh"

enum class Product { Linear, Wide, Residual, Rope, Swiglu, InputGradient, SwigluBackward, WeightGradient };

constexpr int TOKENS = -1, PLANNED = -2;

struct LinearArgs {  // src/ops/linear_launch.rs
    const StepParams* step;
    const void *a, *b;
    void* c;
    const float* residual;
    const uint32_t* positions;
    const float *cos, *sin;
    const void* gate_up;
    void* act;
    int32_t inputs, outputs, rows;
    int32_t first;  // of the supervised rows; or TOKENS, PLANNED
    int32_t turned, head_dim;
    float* partials;
    int32_t splits, rank;
    const void *bias, *left, *right;  // an adapter's operands, or null
    Dropout dropout;
    int32_t unused;
};
static_assert(sizeof(LinearArgs) == 160, "LinearArgs differs from src/ops/linear_launch.rs");

// Type of C.
template <Product P, typename E>
using Output = std::conditional_t<
    P == Product::Wide || P == Product::Residual || P == Product::WeightGradient, float, E>;

// Those that may have a bias.
template <Product P>
constexpr bool takes_bias = P == Product::Residual || P == Product::Rope || P == Product::Swiglu;

// Products on the way back to the inputs, whose adapter may have a mask.
template <Product P>
constexpr bool is_gradient = P == Product::InputGradient || P == Product::SwigluBackward;

// Those that may have an adapter.
template <Product P>
constexpr bool takes_adapter = takes_bias<P> || is_gradient<P>;

template <Product P>
constexpr Along a_along = P == Product::WeightGradient ? Along::Other : Along::K;
template <Product P>
constexpr Along b_along = is_gradient<P> || P == Product::WeightGradient ? Along::Other : Along::K;

__device__ __forceinline__ int rows_in_use(const LinearArgs& args) {
    if (args.first == TOKENS) return int(args.step->tokens);
    if (args.first == PLANNED) return args.rows;
    return min(max(int(args.step->supervised) - args.first, 0), args.rows);
}

// Whether a weight gradient is added to what is there.
__device__ __forceinline__ bool adds(const LinearArgs& args) { return args.step->accumulate || args.first > 0; }

// Dimensions of C = A·B.
struct Shape {
    int M, N, K;
};

template <Product P>
__device__ __forceinline__ Shape shape(const LinearArgs& args) {
    const int T = rows_in_use(args);
    if (P == Product::WeightGradient) return {args.outputs, args.inputs, T};
    if (is_gradient<P>) return {T, args.inputs, args.outputs};
    return {T, args.outputs, args.inputs};
}

// Rows that one part of a weight gradient sums over.
struct Part {
    int first, end;
    __device__ __forceinline__ Part(int rows, int splits, int z) {
        const int steps = (rows + DEPTH - 1) / DEPTH, of_a_part = (steps + splits - 1) / splits;
        first = min(z * of_a_part * DEPTH, rows);
        end = min(first + of_a_part * DEPTH, rows);
    }
    __device__ __forceinline__ bool empty() const { return first == end; }
};

// Columns of W's product that linear_swiglu computes in one block: 64 of gate, the same of up.
struct GateAndUp {
    int first, half;
    __device__ __forceinline__ int operator()(int i) const {
        const int f = first + i % WARP_N;
        return f < half ? f + i / WARP_N * half : -1;
    }
};

// Sums of the columns from n on with their bias, where there is one.
template <Product P, typename E>
__device__ __forceinline__ Pack<float, CHUNK> biased(const LinearArgs& args, Pack<float, CHUNK> sums, int n) {
    if (!takes_bias<P> || !args.bias) return sums;
    const auto bias = load<CHUNK>(static_cast<const E*>(args.bias) + n);
    for (int k = 0; k < CHUNK; ++k) sums.v[k] += to_float(bias.v[k]);
    return sums;
}

// Eight neighbouring elements of row r of C, from column n on. `other` are the sums that rope or SwiGLU combine them
// with.
template <Product P, typename E>
__device__ __forceinline__ void finish(const LinearArgs& args, int r, int n, Shape s, const Pack<float, CHUNK>& sums,
                                       const Pack<float, CHUNK>& other) {
    const size_t at = size_t(r) * s.N + n;
    auto* c = static_cast<Output<P, E>*>(args.c) + at;
    Pack<Output<P, E>, CHUNK> out;
    if constexpr (P == Product::SwigluBackward) {
        const size_t left = 2 * size_t(r) * s.N + n;  // gate's place in a row of gate and up
        const auto gate = load<CHUNK>(static_cast<const E*>(args.gate_up) + left);
        const auto up = load<CHUNK>(static_cast<const E*>(args.gate_up) + left + s.N);
        Pack<E, CHUNK> act, dup;
        for (int k = 0; k < CHUNK; ++k) {
            const auto parts = swiglu_backward<E>(sums.v[k], gate.v[k], up.v[k]);
            act.v[k] = parts.act, out.v[k] = parts.dgate, dup.v[k] = parts.dup;
        }
        if (args.act) store(static_cast<E*>(args.act) + at, act);
        store(static_cast<E*>(args.c) + left, out);
        store(static_cast<E*>(args.c) + left + s.N, dup);
        return;
    } else if constexpr (P == Product::Swiglu) {
        for (int k = 0; k < CHUNK; ++k) out.v[k] = from_float<E>(sums.v[k]);
        if (n < s.N / 2) {  // gate: its lane writes act, too
            Pack<E, CHUNK> act;
            for (int k = 0; k < CHUNK; ++k) {
                const float g = to_float(out.v[k]), u = to_float(from_float<E>(other.v[k]));
                act.v[k] = from_float<E>(g * sigmoid(g) * u);
            }
            store(static_cast<E*>(args.act) + size_t(r) * (s.N / 2) + n, act);
        }
    } else if constexpr (P == Product::Rope) {
        const int half = args.head_dim / 2, i = n % half;
        const size_t angle = size_t(args.positions[r]) * half + i;
        Pack<float, CHUNK> cos{}, sin{};
        if (n < args.turned) cos = load<CHUNK>(args.cos + angle), sin = load<CHUNK>(args.sin + angle);
        for (int k = 0; k < CHUNK; ++k) {
            const float x = sums.v[k], y = other.v[k];
            const float z = n % args.head_dim < half ? turned_first(x, y, cos.v[k], sin.v[k])
                                                     : turned_second(y, x, cos.v[k], sin.v[k]);
            out.v[k] = from_float<E>(n < args.turned ? z : x);
        }
    } else {
        Pack<float, CHUNK> old{};
        if constexpr (P == Product::Residual) old = load<CHUNK>(args.residual + at);
        if constexpr (P == Product::WeightGradient) {
            if (args.splits > 1)
                c = args.partials + size_t(blockIdx.z) * s.M * s.N + at;
            else if (adds(args))
                old = load<CHUNK>(c);
        }
        for (int k = 0; k < CHUNK; ++k) out.v[k] = from_float<Output<P, E>>(old.v[k] + sums.v[k]);
    }
    store(c, out);
}

template <Product P, typename E, typename T>
__device__ __forceinline__ void product(const LinearArgs& args) {
    static_assert(P != Product::Swiglu || T::WARPS_ALONG_N == 2, "a warp for gate, one for up");
    __shared__ Shared<E, T> shared;
    Shape s = shape<P>(args);
    const int m0 = blockIdx.y * T::M, n0 = blockIdx.x * (P == Product::Swiglu ? WARP_N : T::N);
    if (m0 >= s.M || (P == Product::WeightGradient && s.K == 0 && adds(args))) return;
    Sums<T> sums = {};
    const E *a = static_cast<const E*>(args.a), *b = static_cast<const E*>(args.b);
    if constexpr (P == Product::WeightGradient)
        if (args.splits > 1) {
            const Part part(s.K, args.splits, blockIdx.z);
            if (part.empty()) return;
            a += size_t(part.first) * s.M, b += size_t(part.first) * s.N;
            s.K = part.end - part.first;
        }
    const auto add = [&](const E* a, const E* b, int K) {
        using Columns = std::conditional_t<P == Product::Swiglu, GateAndUp, InOrder>;
        const Columns columns{n0, P == Product::Swiglu ? s.N / 2 : s.N};
        multiply<E, T, a_along<P>, b_along<P>>(shared, sums, a, InOrder{m0, s.M}, s.M, b, columns, s.N, K);
    };
    if constexpr (takes_adapter<P>) {
        // One loop for both pairs of operands: its code is there once.
#pragma unroll 1
        for (int pass = args.left ? 0 : 1; pass < 2; ++pass) {
            const bool first = pass == 0;
            add(first ? static_cast<const E*>(args.left) : a, first ? static_cast<const E*>(args.right) : b,
                first ? args.rank : s.K);
            if (is_gradient<P> && first && !args.dropout.keeps_all()) mask<T>(sums, args.step, args.dropout, m0, n0);
        }
    } else {
        add(a, b, s.K);
    }

    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, chunk = lane % 8;
    int column = n0 + T::warp_column() + chunk * CHUNK, other_column = column;
    bool inside = column < s.N;
    if constexpr (P == Product::Rope) other_column += ((chunk ^ args.head_dim / 16) - chunk) * CHUNK;
    if constexpr (P == Product::Swiglu) {
        const int gate = n0 + chunk * CHUNK, up = gate + s.N / 2;
        inside = gate < s.N / 2;
        column = warp % 2 ? up : gate;
        other_column = warp % 2 ? gate : up;
    }
#pragma unroll
    for (int i = 0; i < T::WARP_M / STAGED_ROWS; ++i) {
        // SwiGLU's lanes read what the warp beside them staged.
        P == Product::Swiglu ? __syncthreads() : __syncwarp();
        stage(shared.staged[warp], sums[i]);
        P == Product::Swiglu ? __syncthreads() : __syncwarp();
#pragma unroll
        for (int row = lane / 8; row < STAGED_ROWS; row += WARP / 8) {
            const int r = m0 + T::warp_row() + i * STAGED_ROWS + row;
            if (r >= s.M || !inside) continue;
            const auto own = staged_chunk(shared.staged[warp], row, chunk);
            auto other = own;
            if (P == Product::Swiglu) other = staged_chunk(shared.staged[warp ^ 1], row, chunk);
            if (P == Product::Rope) other = staged_chunk(shared.staged[warp], row, chunk ^ args.head_dim / 16);
            finish<P, E>(args, r, column, s, biased<P, E>(args, own, column), biased<P, E>(args, other, other_column));
        }
    }
}

// The sum for one element of C, with its adapter's and its bias.
template <Product P, typename E>
__device__ __forceinline__ float dot(const LinearArgs& args, Shape s, int m, int n) {
    float sum = 0.0f;
    const auto add = [&](const void* of_a, const void* of_b, int K) {
        const E *a = static_cast<const E*>(of_a), *b = static_cast<const E*>(of_b);
        for (int k = 0; k < K; ++k) {
            const size_t at_a = a_along<P> == Along::K ? size_t(m) * K + k : size_t(k) * s.M + m;
            const size_t at_b = b_along<P> == Along::K ? size_t(n) * K + k : size_t(k) * s.N + n;
            sum = fmaf(to_float(a[at_a]), to_float(b[at_b]), sum);
        }
    };
    if (takes_adapter<P> && args.left) {
        add(args.left, args.right, args.rank);
        if (is_gradient<P>) sum *= args.dropout.at(row_key(args.step, args.dropout.site, m), n);
    }
    add(args.a, args.b, s.K);
    if (takes_bias<P> && args.bias) sum += to_float(static_cast<const E*>(args.bias)[n]);
    return sum;
}

template <Product P, typename E>
__device__ __forceinline__ void product_naive(const LinearArgs& args) {
    const Shape s = shape<P>(args);
    const int m = blockIdx.y, n = blockIdx.x * blockDim.x + threadIdx.x;
    if (m >= s.M || n >= s.N) return;
    const size_t at = size_t(m) * s.N + n;
    auto* c = static_cast<Output<P, E>*>(args.c);
    if constexpr (P == Product::Rope) {
        const int half = args.head_dim / 2;
        if (n >= args.turned) {
            c[at] = from_float<E>(dot<P, E>(args, s, m, n));
        } else if (n % args.head_dim < half) {  // a thread per pair
            const float x = dot<P, E>(args, s, m, n), y = dot<P, E>(args, s, m, n + half);
            const size_t angle = size_t(args.positions[m]) * half + n % args.head_dim;
            c[at] = from_float<E>(turned_first(x, y, args.cos[angle], args.sin[angle]));
            c[at + half] = from_float<E>(turned_second(x, y, args.cos[angle], args.sin[angle]));
        }
    } else if constexpr (P == Product::Swiglu) {
        const int F = s.N / 2;
        if (n >= F) return;
        const E gate = from_float<E>(dot<P, E>(args, s, m, n)), up = from_float<E>(dot<P, E>(args, s, m, n + F));
        c[at] = gate;
        c[at + F] = up;
        const float g = to_float(gate);
        static_cast<E*>(args.act)[size_t(m) * F + n] = from_float<E>(g * sigmoid(g) * to_float(up));
    } else if constexpr (P == Product::SwigluBackward) {
        const size_t left = 2 * size_t(m) * s.N + n;
        const E* gate_up = static_cast<const E*>(args.gate_up);
        const auto parts = swiglu_backward<E>(dot<P, E>(args, s, m, n), gate_up[left], gate_up[left + s.N]);
        if (args.act) static_cast<E*>(args.act)[at] = parts.act;
        c[left] = parts.dgate;
        c[left + s.N] = parts.dup;
    } else {
        float sum = dot<P, E>(args, s, m, n);
        if (P == Product::Residual) sum += args.residual[at];
        if (P == Product::WeightGradient && adds(args)) sum += to_float(c[at]);
        c[at] = from_float<Output<P, E>>(sum);
    }
}

// Adds partial sums up: four elements of dW per thread.
__device__ __forceinline__ void add_partials(const LinearArgs& args) {
    const Shape s = shape<Product::WeightGradient>(args);
    const size_t all = size_t(s.M) * s.N, at = (size_t(blockIdx.x) * THREADS + threadIdx.x) * 4;
    if (at >= all || (s.K == 0 && adds(args))) return;
    Pack<float, 4> sum{}, old{};
    for (int z = 0; z < args.splits && !Part(s.K, args.splits, z).empty(); ++z) {
        const auto partial = load<4>(args.partials + z * all + at);
        for (int k = 0; k < 4; ++k) sum.v[k] += partial.v[k];
    }
    float* dw = static_cast<float*>(args.c) + at;
    if (adds(args)) old = load<4>(dw);
    for (int k = 0; k < 4; ++k) sum.v[k] += old.v[k];
    store(dw, sum);
}

// On Turing four blocks of the gradients that an adapter may take part in would spill.
template <Product P>
constexpr int blocks_of_64x64 =
#if __CUDA_ARCH__ < 800
    P == Product::InputGradient || P == Product::SwigluBackward ? 3 :
#endif
    4;

#define KERNEL(NAME, BLOCKS, ...)                                                                            \
    extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) NAME(const __grid_constant__ LinearArgs args) { \
        __VA_ARGS__(args);                                                                                   \
    }
#define NAIVE(NAME, PRODUCT, A, E) KERNEL(NAME##_naive_##A, 8, product_naive<Product::PRODUCT, E>)
#define ONE_TILE(NAME, PRODUCT, A, E) KERNEL(NAME##_##A, 2, product<Product::PRODUCT, E, Tile<128, 128>>)
#define ALL_TILES(NAME, PRODUCT, A, E)                                                                       \
    ONE_TILE(NAME, PRODUCT, A, E)                                                                            \
    KERNEL(NAME##_128x64_##A, 3, product<Product::PRODUCT, E, Tile<128, 64>>)                                \
    KERNEL(NAME##_64x64_##A, blocks_of_64x64<Product::PRODUCT>, product<Product::PRODUCT, E, Tile<64, 64>>)
#define KERNELS(A, E, FEW_BLOCKS, MANY_BLOCKS)                                                               \
    MANY_BLOCKS(linear, Linear, A, E)                                                                        \
    MANY_BLOCKS(linear_wide, Wide, A, E)                                                                     \
    MANY_BLOCKS(linear_swiglu, Swiglu, A, E)                                                                 \
    FEW_BLOCKS(linear_residual, Residual, A, E)                                                              \
    FEW_BLOCKS(linear_rope, Rope, A, E)                                                                      \
    FEW_BLOCKS(linear_input_gradient, InputGradient, A, E)                                                   \
    FEW_BLOCKS(linear_swiglu_backward, SwigluBackward, A, E)                                                 \
    FEW_BLOCKS(linear_weight_gradient, WeightGradient, A, E)
KERNEL(linear_weight_gradient_finish, 8, add_partials)
KERNELS(f32, float, NAIVE, NAIVE)
KERNELS(bf16, __nv_bfloat16, NAIVE, NAIVE)
KERNELS(f16, __half, NAIVE, NAIVE)
KERNELS(f16, __half, ALL_TILES, ONE_TILE)
#if __CUDA_ARCH__ >= 800
KERNELS(bf16, __nv_bfloat16, ALL_TILES, ONE_TILE)
#endif
