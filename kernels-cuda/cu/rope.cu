// Rotates pairs of channels half a head apart, in place. x: [rows, heads, 2 half] 16-bit; cosines and sines: [rows, half] f32.
//
// half is a multiple of 8: a thread takes eight pairs. grid (ceil(rows heads half / 2048)), 256 threads. `sign` -1 turns back: the
// transposed rotation, for gradients. Twin: reference/src/rope.rs.

extern "C" __global__ void __launch_bounds__(256) rope(
    u16* __restrict__ x, const float* __restrict__ cosines, const float* __restrict__ sines, u64 pairs, u32 heads, u32 half, float sign) {
    u64 at = ((u64)blockIdx.x * 256u + threadIdx.x) * 8u;
    if (at >= pairs) return;
    u64 head = at / half;
    u32 pair = (u32)(at % half);
    u64 angle = head / heads * half + pair;
    u16* from = x + head * 2u * half + pair;
    float low[8], high[8], c[8], s[8];
    load8(low, from);
    load8(high, from + half);
    load8(c, cosines + angle);
    load8(s, sines + angle);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
        float sine = sign * s[j], a = low[j], b = high[j];
        low[j] = a * c[j] - b * sine;
        high[j] = b * c[j] + a * sine;
    }
    store8(from, low);
    store8(from + half, high);
}
