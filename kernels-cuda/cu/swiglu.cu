// y = silu(gate) * up, and its backward in the buffers of gate and up. All 16-bit, `count` values; a thread takes eight.
//
// grid (ceil(count / 2048)), 256 threads. silu(g) = g / (1 + e^-g). Twin: reference/src/swiglu.rs.

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + __expf(-x)); }

__device__ __forceinline__ float forward(float gate, float up) { return gate * sigmoid(gate) * up; }

// gate and up become dL/dgate and dL/dup.
__device__ __forceinline__ void backward(float& gate, float& up, float d_y) {
    float sigma = sigmoid(gate);
    float d_gate = d_y * up * sigma * (1.0f + gate * (1.0f - sigma));
    up = d_y * gate * sigma;
    gate = d_gate;
}

extern "C" __global__ void __launch_bounds__(256) swiglu(
    const u16* __restrict__ gate, const u16* __restrict__ up, u16* __restrict__ y, u64 count) {
    u64 at = ((u64)blockIdx.x * 256u + threadIdx.x) * 8u;
    if (at + 8u <= count) {
        float g[8], u[8];
        load8(g, gate + at);
        load8(u, up + at);
#pragma unroll
        for (int j = 0; j < 8; ++j) g[j] = forward(g[j], u[j]);
        store8(y + at, g);
    } else {
        for (; at < count; ++at) y[at] = narrow(forward(widen(gate[at]), widen(up[at])));
    }
}

extern "C" __global__ void __launch_bounds__(256) swiglu_backward(
    u16* __restrict__ gate, u16* __restrict__ up, const u16* __restrict__ d_y, u64 count) {
    u64 at = ((u64)blockIdx.x * 256u + threadIdx.x) * 8u;
    if (at + 8u <= count) {
        float g[8], u[8], d[8];
        load8(g, gate + at);
        load8(u, up + at);
        load8(d, d_y + at);
#pragma unroll
        for (int j = 0; j < 8; ++j) backward(g[j], u[j], d[j]);
        store8(gate + at, g);
        store8(up + at, u);
    } else {
        for (; at < count; ++at) {
            float g = widen(gate[at]), u = widen(up[at]);
            backward(g, u, widen(d_y[at]));
            gate[at] = narrow(g);
            up[at] = narrow(u);
        }
    }
}
