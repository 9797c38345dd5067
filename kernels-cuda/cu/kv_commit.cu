// Keys and values of new positions into sink slots and rings, and back out of them by position.
//
// k, v: [rows, kv_heads, HEAD_DIM] 16-bit, rows of requests one after another, `rows_each` a request
// slots: [slots, HEAD_DIM]; spans: [requests, kv_heads] HeadSpan; starts: [requests], position of each request's first row
// Any number of channels, in 16 bits: what sessions of whole models need; engines have qkv_rows. grid (rows, kv_heads), 64 threads.
// Twin: reference/src/kv_commit.rs.

__device__ __forceinline__ void copy(u16* __restrict__ to, const u16* __restrict__ from) {
    for (u32 i = threadIdx.x; i < HEAD_DIM / 2u; i += 64u) ((u32*)to)[i] = ((const u32*)from)[i];
}

extern "C" __global__ void __launch_bounds__(64) kv_commit(
    const u16* __restrict__ k, const u16* __restrict__ v, u16* __restrict__ k_slots, u16* __restrict__ v_slots,
    const HeadSpan* __restrict__ spans, const u32* __restrict__ starts, u32 rows_each) {
    u32 request = blockIdx.x / rows_each, kv_head = blockIdx.y, kv_heads = gridDim.y;
    HeadSpan span = spans[request * kv_heads + kv_head];
    u32 p = starts[request] + blockIdx.x % rows_each, end = starts[request] + rows_each;
    if (!enters(span, p, end)) return;
    u64 from = ((u64)blockIdx.x * kv_heads + kv_head) * HEAD_DIM, to = slot_of(span, p) * HEAD_DIM;
    copy(k_slots + to, k + from);
    copy(v_slots + to, v + from);
}

// Linear keys of one request, [start + rows, kv_heads, HEAD_DIM]: the past from its slots, zeros where no query from `start` on
// looks, then the run itself. grid (start + rows, kv_heads), 64 threads.
extern "C" __global__ void __launch_bounds__(64) kv_linear(
    const u16* __restrict__ k, const u16* __restrict__ v, const u16* __restrict__ k_slots, const u16* __restrict__ v_slots,
    u16* __restrict__ k_out, u16* __restrict__ v_out, const HeadSpan* __restrict__ spans, u32 start) {
    u32 p = blockIdx.x, kv_head = blockIdx.y, kv_heads = gridDim.y;
    HeadSpan span = spans[kv_head];
    u64 to = ((u64)p * kv_heads + kv_head) * HEAD_DIM;
    if (p >= start) {
        u64 from = ((u64)(p - start) * kv_heads + kv_head) * HEAD_DIM;
        copy(k_out + to, k + from);
        copy(v_out + to, v + from);
    } else if (p < span.sink || start - p < span.window) {
        u64 from = slot_of(span, p) * HEAD_DIM;
        copy(k_out + to, k_slots + from);
        copy(v_out + to, v_slots + from);
    } else {
        for (u32 i = threadIdx.x; i < HEAD_DIM; i += 64u) k_out[to + i] = v_out[to + i] = 0;
    }
}
