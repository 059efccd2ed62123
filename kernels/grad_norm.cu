// Global L2 norm of the gradients, the factor that clips and unscales them, and whether the step is skipped.
//
//   sum   = over chunks of 4096 elements, of 256 lanes each: lane l adds g[i]^2, i = l, l + 256, ... in order;
//           the lanes by halving (lane[l] += lane[l + s], s = 128, 64, ..., 1); the chunk sums in the same way
//   norm  = sqrt(sum) / loss_scale
//   scale = f32(min(1, max_grad_norm / (norm + 1e-6))) / loss_scale
//   skip  = norm is NaN or infinite
//   the next step's loss_scale: halved where skip, doubled after growth_interval steps without (src/ops/loss_scale.rs)
//
// Shapes     g [n] f32; sums [ceil(n/4096)] f64; out one GradNorm.
// Requires   16-byte aligned g (production rung). Checked in src/ops/grad_norm.rs.
// Mapping    partials: one warp per chunk, 8 warps per block; a thread keeps lanes 4w..4w+3 and
//            128+4w..128+4w+3, so that its loads are 16 bytes, s = 128 and s = 2, 1 stay within the thread
//            and s = 64..4 are shuffles. finish: one block of 256 threads.
// Numerics   f64 throughout; g*g is exact there, so the fused multiply-add rounds as add(mul) does. The order
//            of the additions is fixed: the same bits as src/ops/grad_norm.rs, on any GPU.
// Bytes      4*n read, 8*n/4096 written and read.
// Ladder     v1 naive, one block per chunk and one thread per lane, tree in shared memory: kept below.
//            v2 one warp per chunk: production.
#include "common.cuh"

constexpr int CHUNK = 4096;
constexpr int LANES = 256;

// Sum of the 256 lanes of a block of 256 threads, by halving; in thread 0.
__device__ __forceinline__ double halve(double lane) {
    __shared__ double lanes[LANES];
    const int l = threadIdx.x;
    lanes[l] = lane;
    for (int s = LANES / 2; s > 0; s /= 2) {
        __syncthreads();
        if (l < s) lanes[l] += lanes[l + s];
    }
    return lanes[0];
}

extern "C" __global__ void __launch_bounds__(LANES)
grad_norm_partials_naive(const float* __restrict__ g, uint64_t n, double* __restrict__ sums) {
    const uint64_t first = uint64_t(blockIdx.x) * CHUNK;
    double lane = 0.0;
    for (uint64_t i = first + threadIdx.x; i < first + CHUNK && i < n; i += LANES) {
        lane += double(g[i]) * double(g[i]);
    }
    lane = halve(lane);
    if (threadIdx.x == 0) sums[blockIdx.x] = lane;
}

extern "C" __global__ void __launch_bounds__(256)
grad_norm_partials(const float* __restrict__ g, uint64_t n, double* __restrict__ sums) {
    const uint64_t chunk = uint64_t(blockIdx.x) * (blockDim.x / WARP) + threadIdx.x / WARP;
    const uint64_t first = chunk * CHUNK;
    if (first >= n) return;  // uniform per warp
    const int w = threadIdx.x % WARP;
    double lanes[8] = {};
    for (int row = 0; row < CHUNK; row += LANES) {
        for (int half = 0; half < 2; ++half) {
            const uint64_t i = first + row + half * (LANES / 2) + w * 4;
            Pack<float, 4> x = {};
            if (i + 4 <= n) {
                x = load<4>(g + i);
            } else {
                for (int k = 0; k < 4; ++k) x.v[k] = i + k < n ? g[i + k] : 0.0f;
            }
            for (int k = 0; k < 4; ++k) {
                const double d = x.v[k];
                lanes[half * 4 + k] = __fma_rn(d, d, lanes[half * 4 + k]);
            }
        }
    }
    for (int k = 0; k < 4; ++k) lanes[k] += lanes[4 + k];  // s = 128
    for (int s = 16; s > 0; s /= 2) {                      // s = 64, 32, 16, 8, 4
        for (int k = 0; k < 4; ++k) lanes[k] += __shfl_down_sync(FULL_MASK, lanes[k], s);
    }
    const double sum = (lanes[0] + lanes[2]) + (lanes[1] + lanes[3]);  // s = 2, 1
    if (w == 0) sums[chunk] = sum;
}

extern "C" __global__ void __launch_bounds__(LANES)
grad_norm_finish(StepParams* step, const double* __restrict__ sums, uint32_t chunks, GradNorm* out) {
    double lane = 0.0;
    for (uint32_t i = threadIdx.x; i < chunks; i += LANES) lane += sums[i];
    const double sum = halve(lane);
    if (threadIdx.x != 0) return;
    LossScale& scale = step->loss_scale;
    const double norm = sqrt(sum) / double(scale.value);
    const float clip = float(fmin(double(step->max_grad_norm) / (norm + 1e-6), 1.0));
    out->norm = norm;
    out->scale = clip * (1.0f / scale.value);
    out->skip = isfinite(norm) ? 0 : 1;
    if (scale.growth_interval == 0) return;
    const bool grows = scale.good_steps + 1 >= scale.growth_interval;
    if (!isfinite(norm)) {
        scale = {scale.value * 0.5f, 0, scale.growth_interval};
    } else {
        scale = {grows ? scale.value * 2.0f : scale.value, grows ? 0 : scale.good_steps + 1, scale.growth_interval};
    }
}
