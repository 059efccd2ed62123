// Softmax cross-entropy over rows of logits: loss, whether the best logit is the target's, and the gradient.
//
//   m = max_v l[v], s = sum_v exp(l[v] - m)
//   losses[first + i]  = log(s) - (l[target] - m)
//   entropies[first + i] = log(s) - sum_v exp(l[v] - m) (l[v] - m) / s
//   correct           += no l[v] above l[target], and none before it equal
//   dlogits[i,v]       = A(weight * exp(l[v] - m) / s - (v == target ? weight : 0)),
//                        weight = step->inverse_denominator * step->loss_scale.value
//   cross_entropy_finish: loss_sum += sum of losses, entropy_sum += sum of entropies
//
// Shapes     logits [chunk, V] f32, row i that of position loss_rows[first + i], i < min(chunk, step->supervised -
//            first); dlogits [chunk, V] A, or null: no gradient; where A is f32 it may be logits itself. targets [T] u32, by
//            position; loss_rows [T] u32; losses, entropies [T] f32; sums one LossSums. A is f32, bf16 or f16.
// Requires   V % 8 == 0, 16-byte aligned logits and dlogits (production rung); targets of loss_rows below V. Checked in
//            src/ops/cross_entropy_launch.rs, the targets where the tokenizer and the model are loaded.
// Mapping    one block of 512 threads per row, 8 columns per thread at a time. finish: one block of 256 threads.
// Numerics   f32, expf and logf. Maximum and sum in one pass: each thread its columns, its sum rescaled where its maximum
//            grows; then the lanes by halving, the warps in order (deterministic). NaN among the logits gives NaN; of a logit
//            of minus infinity the exponential is zero, and zero it adds to the entropy. The
//            sums of losses and entropies in f64: thread i adds losses i, i + 256, .. in order, then the threads by halving. The count is
//            added up by integer atomics, whose order does not matter.
// Bytes      per row 4*V read for the loss; for the gradient 4*V more, in part served by L2, and sizeof(A)*V written.
// Ladder     v1 naive, one thread per row, three passes: any V. v2 one block per row, 16-byte access: production.
#include <cfloat>

#include "common.cuh"

constexpr int THREADS = 512;
constexpr int PER_THREAD = 8;  // consecutive columns
constexpr int LANES = 256;     // of the sum of losses

struct LossSums {  // src/ops/cross_entropy_launch.rs
    double loss_sum, entropy_sum;
    unsigned long long correct;
};
static_assert(sizeof(LossSums) == 24, "LossSums differs from src/ops/cross_entropy_launch.rs");

struct CrossEntropyArgs {  // src/ops/cross_entropy_launch.rs
    const StepParams* step;
    const float* logits;
    void* dlogits;
    const uint32_t *targets, *loss_rows;
    float* losses;
    LossSums* sums;
    int32_t first, rows, vocab;
    int32_t unused;
    float* entropies;
};
static_assert(sizeof(CrossEntropyArgs) == 80, "CrossEntropyArgs differs from src/ops/cross_entropy_launch.rs");

// Whether the chunk has a row i, and uses it.
__device__ __forceinline__ bool in_use(const CrossEntropyArgs& args, int i) {
    return i < min(int(args.step->supervised) - args.first, args.rows);
}

__device__ __forceinline__ void report(const CrossEntropyArgs& args, int i, float loss, float entropy, bool correct) {
    args.losses[args.first + i] = loss;
    args.entropies[args.first + i] = entropy;
    if (correct) atomicAdd(&args.sums->correct, 1ull);
}

// A logarithm whose exponential is zero in f32.
constexpr float LEAST = -200.0f;

template <typename E>
__device__ __forceinline__ E gradient(float l, float highest, float factor, bool is_target, float weight) {
    return from_float<E>(expf(l - highest) * factor - (is_target ? weight : 0.0f));
}

template <typename E>
__device__ __forceinline__ void rows_naive(const CrossEntropyArgs& args) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x, V = args.vocab;
    if (!in_use(args, i)) return;
    const float* l = args.logits + size_t(i) * V;
    const int target = args.targets[args.loss_rows[args.first + i]];
    const float best = l[target];
    float highest = -FLT_MAX, total = 0.0f, weighted = 0.0f;
    bool correct = best == best;
    for (int v = 0; v < V; ++v) {
        highest = fmaxf(highest, l[v]);
        correct = correct && !(l[v] > best || (l[v] == best && v < target));
    }
    for (int v = 0; v < V; ++v) {
        const float d = l[v] - highest, e = expf(d);
        total += e;
        weighted += e * fmaxf(d, LEAST);
    }
    report(args, i, logf(total) - (best - highest), logf(total) - weighted / total, correct);
    if (!args.dlogits) return;
    E* d = static_cast<E*>(args.dlogits) + size_t(i) * V;
    const float weight = args.step->inverse_denominator * args.step->loss_scale.value, factor = weight / total;
    for (int v = 0; v < V; ++v) d[v] = gradient<E>(l[v], highest, factor, v == target, weight);
}

// Largest of some logits, and the sums of exp(l - highest), and of it times l - highest, over them. The least number instead of minus infinity, as
// infinity less itself is no number.
struct Softmax {
    float highest = -FLT_MAX, sum = 0.0f, weighted = 0.0f;

    // Makes `highest` the larger of the two.
    __device__ __forceinline__ void raise(float other) {
        if (!(other > highest)) return;
        const float by = fmaxf(highest - other, LEAST), factor = expf(by);
        weighted = (weighted + by * sum) * factor;
        sum *= factor;
        highest = other;
    }
    __device__ __forceinline__ void join(Softmax other) {
        raise(other.highest);
        other.raise(highest);
        sum += other.sum;
        weighted += other.weighted;
    }
};

// Over the lanes of a full warp. Joining is commutative, so every lane gets the same bits.
__device__ __forceinline__ Softmax warp_softmax(Softmax x) {
    for (int offset = WARP / 2; offset > 0; offset /= 2) {
        Softmax other;
        other.highest = __shfl_xor_sync(FULL_MASK, x.highest, offset);
        other.sum = __shfl_xor_sync(FULL_MASK, x.sum, offset);
        other.weighted = __shfl_xor_sync(FULL_MASK, x.weighted, offset);
        x.join(other);
    }
    return x;
}

template <typename E>
__device__ __forceinline__ void rows(const CrossEntropyArgs& args) {
    __shared__ Softmax parts[THREADS / WARP];
    const int i = blockIdx.x, V = args.vocab;
    if (!in_use(args, i)) return;
    const float* l = args.logits + size_t(i) * V;
    const int target = args.targets[args.loss_rows[args.first + i]];
    const float best = l[target];

    Softmax softmax;
    bool beaten = !(best == best);
    for (int v = threadIdx.x * PER_THREAD; v < V; v += THREADS * PER_THREAD) {
        const auto ls = load<PER_THREAD>(l + v);
        float highest = ls.v[0];
        for (int k = 1; k < PER_THREAD; ++k) highest = fmaxf(highest, ls.v[k]);
        softmax.raise(highest);
        for (int k = 0; k < PER_THREAD; ++k) {
            const float d = ls.v[k] - softmax.highest, e = expf(d);
            softmax.sum += e;
            softmax.weighted += e * fmaxf(d, LEAST);
            beaten = beaten || ls.v[k] > best || (ls.v[k] == best && v + k < target);
        }
    }
    softmax = warp_softmax(softmax);
    if (threadIdx.x % WARP == 0) parts[threadIdx.x / WARP] = softmax;
    beaten = __syncthreads_or(beaten);  // also: the parts are there, and best has been read before l may be written
    softmax = parts[0];
    for (int w = 1; w < THREADS / WARP; ++w) softmax.join(parts[w]);
    if (threadIdx.x == 0) {
        const float log_sum = logf(softmax.sum);
        report(args, i, log_sum - (best - softmax.highest), log_sum - softmax.weighted / softmax.sum, !beaten);
    }

    if (!args.dlogits) return;
    E* d = static_cast<E*>(args.dlogits) + size_t(i) * V;
    const float weight = args.step->inverse_denominator * args.step->loss_scale.value, factor = weight / softmax.sum;
    for (int v = threadIdx.x * PER_THREAD; v < V; v += THREADS * PER_THREAD) {
        const auto ls = load<PER_THREAD>(l + v);
        Pack<E, PER_THREAD> ds;
        for (int k = 0; k < PER_THREAD; ++k)
            ds.v[k] = gradient<E>(ls.v[k], softmax.highest, factor, v + k == target, weight);
        store(d + v, ds);
    }
}

extern "C" __global__ void __launch_bounds__(LANES)
cross_entropy_finish(const StepParams* step, const float* __restrict__ losses, const float* __restrict__ entropies,
                     LossSums* sums) {
    __shared__ double lanes[2][LANES];
    double loss = 0.0, entropy = 0.0;
    for (uint32_t i = threadIdx.x; i < step->supervised; i += LANES) loss += losses[i], entropy += entropies[i];
    lanes[0][threadIdx.x] = loss;
    lanes[1][threadIdx.x] = entropy;
    for (int s = LANES / 2; s > 0; s /= 2) {
        __syncthreads();
        if (threadIdx.x >= s) continue;
        for (int sum = 0; sum < 2; ++sum) lanes[sum][threadIdx.x] += lanes[sum][threadIdx.x + s];
    }
    if (threadIdx.x == 0) sums->loss_sum += lanes[0][0], sums->entropy_sum += lanes[1][0];
}

#define KERNELS(A, E)                                                                                        \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                    \
        cross_entropy_##A(const __grid_constant__ CrossEntropyArgs args) {                                   \
        rows<E>(args);                                                                                       \
    }                                                                                                        \
    extern "C" __global__ void __launch_bounds__(128)                                                        \
        cross_entropy_naive_##A(const __grid_constant__ CrossEntropyArgs args) {                             \
        rows_naive<E>(args);                                                                                 \
    }
KERNELS(f32, float)
KERNELS(bf16, __nv_bfloat16)
KERNELS(f16, __half)
