// nvcc: -fmad=false
// One AdamW step over all weights in one launch: 8-bit moments in blocks of 256 (Dettmers et al. 2022,
// arXiv:2110.02861; the rule of bitsandbytes' CUDA kernel), or fp32 moments.
//
//   g = grad * norm->scale
//   blockwise rule              torch's rule (torch.optim.AdamW)
//   m = b1*m + (1-b1)*g         p = p * decay
//   v = b2*v + (1-b2)*g*g       m = m + (1-b1)*(g-m)
//   p = p + s*(m/(sqrt(v)+e))   v = b2*v + (1-b2)*g*g
//   p = p * decay               p = p + s*m/(sqrt(v)/sqrt(1-b2^t) + e)
//
//   8-bit moments: m = value[code]*absmax before; after, absmax = max|m| of the block, code of nearest m/absmax.
//
// Shapes     per weight of n elements: p, g [n] f32; w [n] bf16 or f16 or absent (the weight the model
//            reads); m, v [n] u8 with absmax [ceil(n/256)] f32, or [n] f32. Blocks are of the flattened
//            Hugging Face tensor.
// Requires   n % 8 == 0; 16-byte aligned p, g, w and fp32 m, v; 8-byte aligned codes (production rung; the
//            naive one takes any n). Table entries in ascending first_block, without gaps. Checked in
//            adamw_launch.rs.
// Mapping    one warp per block of 256 elements, 8 consecutive ones per lane; a grid that fills the GPU
//            strides over the blocks. The tables of the quantiser are copied to shared memory once per thread
//            block.
// Numerics   IEEE single, every operation rounded by itself (-fmad=false, no fmaf, correctly rounded division
//            and root, denormals kept): the same bits as src/ops/adamw.rs and adamw_8bit.rs. A step with a
//            norm that is not finite changes nothing.
// Budget     adamw: 80 registers, 0 bytes shared, 3 blocks of 256 threads
//            adamw_8bit: 80 registers, 34816 bytes shared, 3 blocks of 256 threads (sm_75: 1, sm_86: 2, sm_89: 2, sm_120: 2)
// Bytes      adamw: read 16*n + 56*n/256, written 12*n + sizeof(A)*n;
//            adamw_8bit: read 10*n + 80*n/256 + 34816*B, written 6*n + sizeof(A)*n + 8*n/256. n elements of all weights,
//            A the type of w; per block of 256 its absmax and its entry of the table; the books once per thread block,
//            of which there are B. All in 16-byte accesses but codes, which are 8 per lane, and those.
// Ladder     v1 naive, one thread per block, nearest code by exhaustive search: the GPU's oracle, kept below.
//            v2 one warp per block, 16-byte access, code by table look-up: production.
#include "common.cuh"

constexpr int BLOCK = 256;
constexpr int PER_LANE = BLOCK / WARP;
constexpr int THREADS = 256;

// One weight. Mirrors DeviceWeight in src/ops/adamw_launch.rs.
struct Weight {
    float* p;
    void* w;  // null: the model reads p itself
    const float* g;
    void* m;
    void* v;
    float* m_absmax;  // null: fp32 moments
    float* v_absmax;
    uint64_t n;
    uint32_t first_block;  // blocks of 256 in all weights before this one
    uint32_t decays;
};
static_assert(sizeof(Weight) == 72, "Weight differs from DeviceWeight in src/ops/adamw_launch.rs");

struct Weights {
    const Weight* entries;
    uint32_t count;
    uint32_t blocks;    // of 256, in all of them
    uint32_t w_is_f16;  // else bf16
};

// Both books of src/ops/codebook.rs: values and buckets of the signed one, then of the unsigned one.
constexpr int BUCKETS = 4096;
struct Codebook {
    float values[256];
    uint32_t buckets[BUCKETS];
};
struct alignas(16) Codebooks {
    Codebook m, v;
};
constexpr int M_SHIFT = 17, V_SHIFT = 16;
constexpr uint32_t LOWEST = (127 - 23) << 23, HIGHEST = (127 << 23) - 1, NEGATIVE = 2048;

// Code of x, |x| <= 1; see Codebook::quantise.
template <int SHIFT>
__device__ __forceinline__ uint32_t quantise(const Codebook& book, float x) {
    const bool negative = x < 0.0f;
    const uint32_t magnitude = min(max(__float_as_uint(x) & 0x7fffffffu, LOWEST), HIGHEST);
    const uint32_t word = book.buckets[(magnitude - LOWEST) >> SHIFT | (negative ? NEGATIVE : 0)];
    const uint32_t beyond = (magnitude & ((1u << SHIFT) - 1)) > word >> 8;
    return (negative ? word - beyond : word + beyond) & 0xff;
}

// By its definition: least distance, a tie to the even code, a negative x among negative values only.
__device__ __forceinline__ uint32_t nearest(const Codebook& book, float x) {
    uint32_t best = 0;
    double best_distance = fabs(double(x) - double(book.values[0]));
    for (uint32_t c = 1; c < 256 && !(x < 0.0f && book.values[c] >= 0.0f); ++c) {
        const double distance = fabs(double(x) - double(book.values[c]));
        if (distance < best_distance || (distance == best_distance && c % 2 == 0)) {
            best = c;
            best_distance = distance;
        }
    }
    return best;
}

// One element; p and the moments are replaced.
template <bool TORCH>
__device__ __forceinline__ void update(const AdamWScalars& s, float scale, float decay, float grad, float& p,
                                       float& m, float& v) {
    const float g = grad * scale;
    if (TORCH) {
        const float decayed = p * decay;
        m = m + s.one_minus_beta1 * (g - m);
        v = s.beta2 * v + s.one_minus_beta2 * g * g;
        p = decayed + s.step_size * m / (sqrtf(v) / s.sqrt_bias_correction2 + s.eps);
    } else {
        m = s.beta1 * m + s.one_minus_beta1 * g;
        v = s.beta2 * v + s.one_minus_beta2 * g * g;
        p = (p + s.step_size * (m / (sqrtf(v) + s.eps))) * decay;
    }
}

// The weight that holds a block: the last entry whose first block is not beyond it.
__device__ __forceinline__ const Weight& find(const Weights& all, uint32_t block) {
    uint32_t low = 0, high = all.count;
    while (high - low > 1) {
        const uint32_t middle = (low + high) / 2;
        if (all.entries[middle].first_block <= block) low = middle;
        else high = middle;
    }
    return all.entries[low];
}

__device__ __forceinline__ float divisor(float absmax) { return absmax == 0.0f ? 1.0f : absmax; }

// v1. One thread per block.
template <bool TORCH>
__device__ __forceinline__ void step_naive(const StepParams* step, const GradNorm* norm, const Weights& all,
                                           const Codebooks* books) {
    const uint32_t block = blockIdx.x * blockDim.x + threadIdx.x;
    if (block >= all.blocks || norm->skip) return;
    const Weight weight = find(all, block);
    const AdamWScalars s = step->adamw;
    const float scale = norm->scale, decay = weight.decays ? s.decay : 1.0f;
    const uint32_t b = block - weight.first_block;
    const uint64_t first = uint64_t(b) * BLOCK;
    const uint64_t end = min(first + BLOCK, weight.n);
    const bool blockwise = weight.m_absmax != nullptr;
    float* m_full = static_cast<float*>(global(weight.m));
    float* v_full = static_cast<float*>(global(weight.v));
    uint8_t* m_codes = static_cast<uint8_t*>(global(weight.m));
    uint8_t* v_codes = static_cast<uint8_t*>(global(weight.v));
    const float m_old = blockwise ? global(weight.m_absmax)[b] : 0.0f;
    const float v_old = blockwise ? global(weight.v_absmax)[b] : 0.0f;
    float m_new = 0.0f, v_new = 0.0f;
    for (uint64_t i = first; i < end; ++i) {
        float p = global(weight.p)[i];
        float m = blockwise ? books->m.values[m_codes[i]] * m_old : m_full[i];
        float v = blockwise ? books->v.values[v_codes[i]] * v_old : v_full[i];
        update<TORCH>(s, scale, decay, global(weight.g)[i], p, m, v);
        global(weight.p)[i] = p;
        if (weight.w != nullptr) {
            if (all.w_is_f16) static_cast<__half*>(global(weight.w))[i] = from_float<__half>(p);
            else static_cast<__nv_bfloat16*>(global(weight.w))[i] = from_float<__nv_bfloat16>(p);
        }
        m_new = fmaxf(m_new, fabsf(m));
        v_new = fmaxf(v_new, fabsf(v));
        if (!blockwise) {
            m_full[i] = m;
            v_full[i] = v;
        }
    }
    if (!blockwise) return;
    // The largest magnitudes are known only now: the moments again, from the codes before this step.
    for (uint64_t i = first; i < end; ++i) {
        float p = 0.0f, m = books->m.values[m_codes[i]] * m_old, v = books->v.values[v_codes[i]] * v_old;
        update<TORCH>(s, scale, decay, global(weight.g)[i], p, m, v);
        m_codes[i] = uint8_t(nearest(books->m, m / divisor(m_new)));
        v_codes[i] = uint8_t(nearest(books->v, v / divisor(v_new)));
    }
    global(weight.m_absmax)[b] = m_new;
    global(weight.v_absmax)[b] = v_new;
}

using Floats = Pack<float, PER_LANE>;
using Codes = Pack<uint8_t, PER_LANE>;

__device__ __forceinline__ Floats decode(const Codebook& book, const Codes& codes, float absmax) {
    Floats x;
    for (int k = 0; k < PER_LANE; ++k) x.v[k] = book.values[codes.v[k]] * absmax;
    return x;
}

// Stores a block's largest magnitude and the codes of this lane's elements. All 32 lanes take part; those behind
// the end of the weight hold zeros and store nothing.
template <int SHIFT>
__device__ __forceinline__ void encode(const Codebook& book, const Floats& x, bool active, uint8_t* codes,
                                       float* absmax) {
    uint32_t largest = 0;  // magnitudes are ordered as their bits are
    for (int k = 0; k < PER_LANE; ++k) largest = max(largest, __float_as_uint(x.v[k]) & 0x7fffffffu);
    const float of_block = __uint_as_float(warp_max(largest));
    if (!active) return;
    Codes out;
    for (int k = 0; k < PER_LANE; ++k) out.v[k] = uint8_t(quantise<SHIFT>(book, x.v[k] / divisor(of_block)));
    store(codes, out);
    *absmax = of_block;  // the same from every lane
}

template <typename E>
__device__ __forceinline__ void store_rounded(void* w, uint64_t i, const Floats& p) {
    Pack<E, PER_LANE> rounded;
    for (int k = 0; k < PER_LANE; ++k) rounded.v[k] = from_float<E>(p.v[k]);
    store(static_cast<E*>(w) + i, rounded);
}

// v2. One warp per block. Under torch's rule there are no 8-bit moments.
template <bool TORCH>
__device__ __forceinline__ void step(const StepParams* step, const GradNorm* norm, const Weights& all,
                                     const Codebooks& books) {
    const AdamWScalars s = step->adamw;
    const float scale = norm->scale;
    const uint32_t per_block = blockDim.x / WARP, first = blockIdx.x * per_block + threadIdx.x / WARP;
    const int lane = threadIdx.x % WARP;
    for (uint32_t block = first; block < all.blocks; block += gridDim.x * per_block) {
        const Weight weight = find(all, block);
        const float decay = weight.decays ? s.decay : 1.0f;
        const uint32_t b = block - weight.first_block;
        const uint64_t i = uint64_t(b) * BLOCK + lane * PER_LANE;
        const bool active = i < weight.n;
        const bool blockwise = !TORCH && weight.m_absmax != nullptr;
        uint8_t* m_codes = static_cast<uint8_t*>(global(weight.m)) + i;
        uint8_t* v_codes = static_cast<uint8_t*>(global(weight.v)) + i;
        float* m_full = static_cast<float*>(global(weight.m)) + i;
        float* v_full = static_cast<float*>(global(weight.v)) + i;
        Floats p = {}, g = {}, m = {}, v = {};
        if (active) {
            p = load<PER_LANE>(global(weight.p) + i);
            g = load<PER_LANE>(global(weight.g) + i);
            if (blockwise) {
                m = decode(books.m, load<PER_LANE>(m_codes), global(weight.m_absmax)[b]);
                v = decode(books.v, load<PER_LANE>(v_codes), global(weight.v_absmax)[b]);
            } else {
                m = load<PER_LANE>(m_full);
                v = load<PER_LANE>(v_full);
            }
        }
        for (int k = 0; k < PER_LANE; ++k) update<TORCH>(s, scale, decay, g.v[k], p.v[k], m.v[k], v.v[k]);
        if (active) {
            store(global(weight.p) + i, p);
            if (weight.w != nullptr) {
                if (all.w_is_f16) store_rounded<__half>(global(weight.w), i, p);
                else store_rounded<__nv_bfloat16>(global(weight.w), i, p);
            }
        }
        if (blockwise) {
            __syncwarp();  // every lane has read absmax before it changes
            encode<M_SHIFT>(books.m, m, active, m_codes, global(weight.m_absmax) + b);
            encode<V_SHIFT>(books.v, v, active, v_codes, global(weight.v_absmax) + b);
        } else if (active) {
            store(m_full, m);
            store(v_full, v);
        }
    }
}

#define PARAMETERS                                                                                           \
    const StepParams *params, const GradNorm *norm, const Weight *entries, uint32_t count, uint32_t blocks,  \
        uint32_t w_is_f16, const Codebooks *books

extern "C" __global__ void __launch_bounds__(THREADS, 3) adamw_8bit(PARAMETERS) {
    __shared__ Codebooks shared;
    if (norm->skip) return;
    const uint4* from = reinterpret_cast<const uint4*>(books);
    uint4* to = reinterpret_cast<uint4*>(&shared);
    for (int i = threadIdx.x; i < int(sizeof(Codebooks) / sizeof(uint4)); i += blockDim.x) to[i] = from[i];
    __syncthreads();
    step<false>(params, norm, {entries, count, blocks, w_is_f16}, shared);
}

extern "C" __global__ void __launch_bounds__(THREADS, 3) adamw(PARAMETERS) {
    if (norm->skip) return;
    step<true>(params, norm, {entries, count, blocks, w_is_f16}, *books);
}

extern "C" __global__ void __launch_bounds__(THREADS, 3) adamw_8bit_naive(PARAMETERS) {
    step_naive<false>(params, norm, {entries, count, blocks, w_is_f16}, books);
}

extern "C" __global__ void __launch_bounds__(THREADS, 3) adamw_naive(PARAMETERS) {
    step_naive<true>(params, norm, {entries, count, blocks, w_is_f16}, books);
}
