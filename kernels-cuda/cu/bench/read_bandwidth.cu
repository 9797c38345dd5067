// Reads a buffer once: the ceiling that memory-bound kernels are measured against. No twin: it computes nothing of use.
//
// data: [count] uint4, a multiple of 4 x threads in all   sink: [1] u32, written only if all words happen to xor to a chosen value

extern "C" __global__ void __launch_bounds__(512) read_bandwidth(const uint4* __restrict__ data, unsigned int* sink, unsigned int count) {
    unsigned int x = 0;
    unsigned int stride = gridDim.x * blockDim.x;
    for (unsigned int i = blockIdx.x * blockDim.x + threadIdx.x; i + 3u * stride < count; i += 4u * stride) {
        uint4 parts[4];
#pragma unroll
        for (unsigned int j = 0; j < 4u; ++j) parts[j] = data[i + j * stride];
#pragma unroll
        for (unsigned int j = 0; j < 4u; ++j) x ^= parts[j].x ^ parts[j].y ^ parts[j].z ^ parts[j].w;
    }
    if (x == 0x9E3779B9u) *sink = x;
}
