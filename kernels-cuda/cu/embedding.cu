// Rows by number, and values from one width to the other: the embedding, the rows that carry loss, casts.
//
// gather_X_Y: y[r] = table[ids[r]], X and Y each 16-bit or f32 (widen: 16-bit to f32); an id that is not in the table gives NaN.
// scatter: table[ids[r]] = x[r], f32, distinct ids. Rows have `dim` values. grid (rows), 128 threads.
// narrow_values, widen_values: `count` values, eight a thread, grid (ceil(count / 2048)), 256 threads.
// narrow_biased: y[r] = x[r] + bias, rounded once; f32 to 16-bit, bias 16-bit or null. grid (rows), 128 threads.
// Twin: reference/src/embedding.rs; casts are exact or rounded to nearest even.

template <typename From, typename To>
__device__ __forceinline__ void copy_row(const From* __restrict__ from, To* __restrict__ to, u32 dim) {
    u32 whole = dim % 8u == 0u ? dim : 0u;
    for (u32 i = threadIdx.x * 8u; i < whole; i += 1024u) {
        float values[8];
        load8(values, from + i);
        store8(to + i, values);
    }
    for (u32 i = whole + threadIdx.x; i < dim; i += 128u) store1(to + i, load1(from + i));
}

template <typename From, typename To>
__device__ __forceinline__ void gather(const From* __restrict__ table, const u32* __restrict__ ids, To* __restrict__ y, u32 dim, u32 rows) {
    u32 id = ids[blockIdx.x];
    y += (u64)blockIdx.x * dim;
    if (id < rows) {
        copy_row(table + (u64)id * dim, y, dim);
    } else {
        for (u32 i = threadIdx.x; i < dim; i += 128u) store1(y + i, __int_as_float(0x7FC00000));
    }
}

extern "C" __global__ void __launch_bounds__(128) gather_half(
    const u16* __restrict__ table, const u32* __restrict__ ids, u16* __restrict__ y, u32 dim, u32 rows) { gather(table, ids, y, dim, rows); }

extern "C" __global__ void __launch_bounds__(128) gather_full(
    const float* __restrict__ table, const u32* __restrict__ ids, float* __restrict__ y, u32 dim, u32 rows) { gather(table, ids, y, dim, rows); }

extern "C" __global__ void __launch_bounds__(128) gather_widen(
    const u16* __restrict__ table, const u32* __restrict__ ids, float* __restrict__ y, u32 dim, u32 rows) { gather(table, ids, y, dim, rows); }

extern "C" __global__ void __launch_bounds__(128) scatter(
    const float* __restrict__ x, const u32* __restrict__ ids, float* __restrict__ table, u32 dim, u32 rows) {
    u32 id = ids[blockIdx.x];
    if (id < rows) copy_row(x + (u64)blockIdx.x * dim, table + (u64)id * dim, dim);
}

template <typename From, typename To>
__device__ __forceinline__ void cast(const From* __restrict__ x, To* __restrict__ y, u64 count) {
    u64 at = ((u64)blockIdx.x * 256u + threadIdx.x) * 8u;
    if (at + 8u <= count) {
        float values[8];
        load8(values, x + at);
        store8(y + at, values);
    } else {
        for (; at < count; ++at) store1(y + at, load1(x + at));
    }
}

extern "C" __global__ void __launch_bounds__(256) narrow_values(const float* __restrict__ x, u16* __restrict__ y, u64 count) { cast(x, y, count); }
extern "C" __global__ void __launch_bounds__(256) widen_values(const u16* __restrict__ x, float* __restrict__ y, u64 count) { cast(x, y, count); }

extern "C" __global__ void __launch_bounds__(128) narrow_biased(
    const float* __restrict__ x, const u16* __restrict__ bias, u16* __restrict__ y, u32 dim) {
    u64 at = (u64)blockIdx.x * dim;
    for (u32 i = threadIdx.x; i < dim; i += 128u) store1(y + at + i, x[at + i] + (bias != nullptr ? load1(bias + i) : 0.0f));
}
