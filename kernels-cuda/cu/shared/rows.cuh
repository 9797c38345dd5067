// What kernels that work row by row share: 16-bit values in groups of eight, and sums over a block.
//
// Everything here is f32 between a load and a store. Groups of eight 16-bit values are one 16-byte access, so buffers
// lie at multiples of 16 bytes; what does not fill a group is taken value by value.

typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned long long u64;

#define INFINITY __int_as_float(0x7F800000)

#if ELEMENT_BF16
__device__ __forceinline__ float widen(u16 x) { return __uint_as_float((u32)x << 16); }
__device__ __forceinline__ u16 narrow(float x) {
    u16 y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y) : "f"(x));
    return y;
}
#else
__device__ __forceinline__ float widen(u16 x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));
    return y;
}
__device__ __forceinline__ u16 narrow(float x) {
    u16 y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(x));
    return y;
}
#endif

__device__ __forceinline__ void load8(float (&to)[8], const u16* from) {
    uint4 all = *(const uint4*)from;
    u32 pairs[4] = {all.x, all.y, all.z, all.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        to[2 * i] = widen((u16)(pairs[i] & 0xFFFFu));
        to[2 * i + 1] = widen((u16)(pairs[i] >> 16));
    }
}

__device__ __forceinline__ void load8(float (&to)[8], const float* from) {
    float4 a = ((const float4*)from)[0], b = ((const float4*)from)[1];
    to[0] = a.x, to[1] = a.y, to[2] = a.z, to[3] = a.w;
    to[4] = b.x, to[5] = b.y, to[6] = b.z, to[7] = b.w;
}

__device__ __forceinline__ void store8(u16* to, const float (&from)[8]) {
    u32 pairs[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) pairs[i] = (u32)narrow(from[2 * i]) | (u32)narrow(from[2 * i + 1]) << 16;
    *(uint4*)to = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
}

__device__ __forceinline__ void store8(float* to, const float (&from)[8]) {
    ((float4*)to)[0] = make_float4(from[0], from[1], from[2], from[3]);
    ((float4*)to)[1] = make_float4(from[4], from[5], from[6], from[7]);
}

__device__ __forceinline__ float load1(const u16* from) { return widen(*from); }
__device__ __forceinline__ float load1(const float* from) { return *from; }
__device__ __forceinline__ void store1(u16* to, float from) { *to = narrow(from); }
__device__ __forceinline__ void store1(float* to, float from) { *to = from; }

struct Add {
    template <typename T>
    __device__ __forceinline__ static T of(T a, T b) { return a + b; }
};
struct Max {
    template <typename T>
    __device__ __forceinline__ static T of(T a, T b) { return a > b ? a : b; }
};

// The same result in every thread of a block of whole warps, in an order that depends on nothing else.
template <typename By, typename T>
__device__ __forceinline__ T over_block(T value) {
    __shared__ T parts[32];
    u32 warp = threadIdx.x / 32u, lane = threadIdx.x % 32u, warps = blockDim.x / 32u;
    for (u32 mask = 16; mask > 0; mask /= 2) value = By::of(value, __shfl_xor_sync(~0u, value, mask));
    __syncthreads();
    if (lane == 0u) parts[warp] = value;
    __syncthreads();
    value = parts[0];
    for (u32 i = 1; i < warps; ++i) value = By::of(value, parts[i]);
    return value;
}
