// What lies between the projections and attention, for packed rows of a ragged batch: biases, RoPE, and the caches.
//
// x: [rows, heads + 2 kv_heads, HEAD_DIM] 16-bit: a row's queries, keys and values   bias: null or [heads + 2 kv_heads, HEAD_DIM] f32
// angles: [positions, HEAD_DIM / 2] of (cosine, sine)   q, k, v: [rows, heads or kv_heads, HEAD_DIM] 16-bit
// positions: [rows]; a row's position is positions[row] - back, and a row of positions[row] < back is idle: nothing is read or written
// requests: [rows] whose row it is; null: row r is request r's   ends: [requests] tokens after the chunk
// spans: [requests, kv_heads] HeadSpan   slots: [slot, HEAD_DIM] 16-bit or (KV_INT8) signed bytes   scales: [slot] of (k, v), KV_INT8 alone
//
// A warp takes a row of one head: a lane the channels PAIRS lane + e and HEAD_DIM / 2 + PAIRS lane + e, which RoPE turns together.
// Numerics: sums in f32; keys and values are rounded to 16 bits before they are cached, so that a chunk and single tokens leave the
// same cache. A row in bytes: scale = largest magnitude / 127, bytes = values / scale rounded to nearest even.
// Twin: reference/src/qkv_rows.rs.

typedef unsigned char u8;

#define WARPS 4u
#define PAIRS (HEAD_DIM / 64u)
#define HALF (HEAD_DIM / 2u)

#if KV_INT8
typedef u8 Value;
#else
typedef u16 Value;
#endif

// A lane's share of a row.
struct Lane { float low[PAIRS], high[PAIRS]; };

__device__ __forceinline__ Lane load(const u16* __restrict__ row) {
    u32 lane = threadIdx.x % 32u;
    Lane x;
#pragma unroll
    for (u32 e = 0; e < PAIRS; ++e) {
        x.low[e] = widen(row[PAIRS * lane + e]);
        x.high[e] = widen(row[HALF + PAIRS * lane + e]);
    }
    return x;
}

__device__ __forceinline__ void store(u16* __restrict__ row, const Lane& x) {
    u32 lane = threadIdx.x % 32u;
#pragma unroll
    for (u32 e = 0; e < PAIRS; ++e) {
        row[PAIRS * lane + e] = narrow(x.low[e]);
        row[HALF + PAIRS * lane + e] = narrow(x.high[e]);
    }
}

// A row into its slot; `which` is 0 for keys and 1 for values.
__device__ __forceinline__ void cache(Value* __restrict__ slots, float* __restrict__ scales, u64 slot, u32 which, Lane x) {
    Value* row = slots + slot * HEAD_DIM;
#if KV_INT8
    u32 lane = threadIdx.x % 32u;
    float top = 0.0f;
#pragma unroll
    for (u32 e = 0; e < PAIRS; ++e) {
        x.low[e] = widen(narrow(x.low[e]));
        x.high[e] = widen(narrow(x.high[e]));
        top = fmaxf(top, fmaxf(fabsf(x.low[e]), fabsf(x.high[e])));
    }
    for (u32 mask = 16; mask > 0; mask /= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, mask));
    float inverse = top > 0.0f ? 127.0f / top : 0.0f;
#pragma unroll
    for (u32 e = 0; e < PAIRS; ++e) {
        row[PAIRS * lane + e] = (u8)__float2int_rn(x.low[e] * inverse);
        row[HALF + PAIRS * lane + e] = (u8)__float2int_rn(x.high[e] * inverse);
    }
    if (lane == 0u) scales[slot * 2u + which] = top / 127.0f;
#else
    store(row, x);
#endif
}

template <bool COMMIT>
__device__ __forceinline__ void take_row(
    const u16* __restrict__ x, const float* __restrict__ bias, const float2* __restrict__ angles, const u32* __restrict__ positions,
    u16* __restrict__ q, u16* __restrict__ k, u16* __restrict__ v, const HeadSpan* __restrict__ spans, Value* __restrict__ k_slots,
    Value* __restrict__ v_slots, float* __restrict__ scales, u32 heads, u32 kv_heads, u32 back) {
    u32 row = blockIdx.x, head = blockIdx.y * WARPS + threadIdx.x / 32u, lane = threadIdx.x % 32u;
    u32 all = heads + 2u * kv_heads;
    if (head >= all || positions[row] < back) return;
    u32 position = positions[row] - back;
    Lane own = load(x + ((u64)row * all + head) * HEAD_DIM);
    if (bias != nullptr) {
        bias += head * HEAD_DIM + PAIRS * lane;
#pragma unroll
        for (u32 e = 0; e < PAIRS; ++e) {
            own.low[e] += bias[e];
            own.high[e] += bias[HALF + e];
        }
    }
    if (head < heads + kv_heads) {
#pragma unroll
        for (u32 e = 0; e < PAIRS; ++e) {
            float2 angle = angles[(u64)position * HALF + PAIRS * lane + e];
            float low = own.low[e], high = own.high[e];
            own.low[e] = low * angle.x - high * angle.y;
            own.high[e] = high * angle.x + low * angle.y;
        }
    }
    if (head < heads) {
        store(q + ((u64)row * heads + head) * HEAD_DIM, own);
        return;
    }
    u32 which = head < heads + kv_heads ? 0u : 1u;
    u32 kv_head = head - heads - which * kv_heads;
    if (COMMIT) {
        u64 slot = slot_of(spans[row * kv_heads + kv_head], position);
        cache(which == 0u ? k_slots : v_slots, scales, slot, which, own);
    } else {
        store((which == 0u ? k : v) + ((u64)row * kv_heads + kv_head) * HEAD_DIM, own);
    }
}

// A chunk: queries, keys and values to their own tensors. grid (rows, ceil((heads + 2 kv_heads) / 4)), 128 threads.
extern "C" __global__ void __launch_bounds__(WARPS * 32) qkv_split(
    const u16* __restrict__ x, const float* __restrict__ bias, const float2* __restrict__ angles, const u32* __restrict__ positions,
    u16* __restrict__ q, u16* __restrict__ k, u16* __restrict__ v, u32 heads, u32 kv_heads) {
    take_row<false>(x, bias, angles, positions, q, k, v, nullptr, nullptr, nullptr, nullptr, heads, kv_heads, 0u);
}

// A decoded token of every request (positions count its tokens, this one too): keys and values go to their slots. The same grid.
extern "C" __global__ void __launch_bounds__(WARPS * 32) qkv_append(
    const u16* __restrict__ x, const float* __restrict__ bias, const float2* __restrict__ angles, const u32* __restrict__ lens,
    u16* __restrict__ q, const HeadSpan* __restrict__ spans, Value* __restrict__ k_slots, Value* __restrict__ v_slots,
    float* __restrict__ scales, u32 heads, u32 kv_heads) {
    take_row<true>(x, bias, angles, lens, q, nullptr, nullptr, spans, k_slots, v_slots, scales, heads, kv_heads, 1u);
}

// A chunk's keys and values to their slots.
// grid (rows, ceil(kv_heads / 2)), 128 threads.
extern "C" __global__ void __launch_bounds__(WARPS * 32) qkv_commit(
    const u16* __restrict__ k, const u16* __restrict__ v, const u32* __restrict__ positions, const u32* __restrict__ requests,
    const u32* __restrict__ ends, const HeadSpan* __restrict__ spans, Value* __restrict__ k_slots, Value* __restrict__ v_slots,
    float* __restrict__ scales, u32 kv_heads) {
    u32 row = blockIdx.x, warp = threadIdx.x / 32u, kv_head = blockIdx.y * 2u + warp / 2u, which = warp % 2u;
    if (kv_head >= kv_heads) return;
    u32 request = requests[row], p = positions[row];
    HeadSpan span = spans[request * kv_heads + kv_head];
    if (!enters(span, p, ends[request])) return;
    Lane own = load((which == 0u ? k : v) + ((u64)row * kv_heads + kv_head) * HEAD_DIM);
    cache(which == 0u ? k_slots : v_slots, scales, slot_of(span, p), which, own);
}

#if KV_INT8
// Bytes back to 16 bits: `slots` rows of K and V. grid (ceil(slots / 2)), 128 threads.
extern "C" __global__ void __launch_bounds__(WARPS * 32) qkv_widen(
    const signed char* __restrict__ k_slots, const signed char* __restrict__ v_slots, const float* __restrict__ scales,
    u16* __restrict__ k, u16* __restrict__ v, u32 slots) {
    u32 warp = threadIdx.x / 32u, lane = threadIdx.x % 32u, which = warp % 2u;
    u64 slot = (u64)blockIdx.x * 2u + warp / 2u;
    if (slot >= slots) return;
    const signed char* from = (which == 0u ? k_slots : v_slots) + slot * HEAD_DIM;
    float scale = scales[slot * 2u + which];
    Lane own;
#pragma unroll
    for (u32 e = 0; e < PAIRS; ++e) {
        own.low[e] = (float)from[PAIRS * lane + e] * scale;
        own.high[e] = (float)from[HALF + PAIRS * lane + e] * scale;
    }
    store((which == 0u ? k : v) + slot * HEAD_DIM, own);
}
#endif
