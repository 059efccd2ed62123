// What SwiGLU makes of single elements. No kernel.
#pragma once
#include "common.cuh"

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// What of act, gate and up one gradient makes.
template <typename E>
struct SwigluParts {
    E act, dgate, dup;
};
template <typename E>
__device__ __forceinline__ SwigluParts<E> swiglu_backward(float d, E gate, E up) {
    const float rounded = to_float(from_float<E>(d)), g = to_float(gate), u = to_float(up);
    const float s = sigmoid(g), silu = g * s;
    return {from_float<E>(silu * u), from_float<E>(rounded * u * (s + silu * (1.0f - s))), from_float<E>(rounded * silu)};
}
