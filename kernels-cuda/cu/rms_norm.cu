// y = x / sqrt(mean(x^2) + eps) * weight, row by row, and its backward. A block a row; the second read of a row hits the cache.
//
// x: [rows, dim] f32   weight: [dim] f32   y: [rows, dim] 16-bit   d_y, d_x: [rows, dim] f32
// grid (rows), 256 threads. With `add`, d_x is added to. Twin: reference/src/rms_norm.rs.

// What is left of a row behind its last whole group of eight; rows of other lengths than multiples of 8 are taken value by value.
#define WHOLE(dim) ((dim) % 8u == 0u ? (dim) : 0u)

extern "C" __global__ void __launch_bounds__(256) rms_norm(
    const float* __restrict__ x, const float* __restrict__ weight, u16* __restrict__ y, u32 dim, float eps) {
    x += (u64)blockIdx.x * dim;
    y += (u64)blockIdx.x * dim;
    u32 whole = WHOLE(dim);
    float squares = 0.0f;
    for (u32 i = threadIdx.x * 8u; i < whole; i += 2048u) {
        float a[8];
        load8(a, x + i);
#pragma unroll
        for (int j = 0; j < 8; ++j) squares += a[j] * a[j];
    }
    for (u32 i = whole + threadIdx.x; i < dim; i += 256u) squares += x[i] * x[i];
    float scale = 1.0f / sqrtf(over_block<Add>(squares) / (float)dim + eps);
    for (u32 i = threadIdx.x * 8u; i < whole; i += 2048u) {
        float a[8], w[8];
        load8(a, x + i);
        load8(w, weight + i);
#pragma unroll
        for (int j = 0; j < 8; ++j) a[j] *= scale * w[j];
        store8(y + i, a);
    }
    for (u32 i = whole + threadIdx.x; i < dim; i += 256u) y[i] = narrow(x[i] * scale * weight[i]);
}

extern "C" __global__ void __launch_bounds__(256) rms_norm_backward(
    const float* __restrict__ x, const float* __restrict__ weight, const float* __restrict__ d_y, float* __restrict__ d_x,
    u32 dim, float eps, u32 add) {
    u64 at = (u64)blockIdx.x * dim;
    x += at;
    d_y += at;
    d_x += at;
    u32 whole = WHOLE(dim);
    float squares = 0.0f, product = 0.0f;
    for (u32 i = threadIdx.x * 8u; i < whole; i += 2048u) {
        float a[8], w[8], d[8];
        load8(a, x + i);
        load8(w, weight + i);
        load8(d, d_y + i);
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            squares += a[j] * a[j];
            product += d[j] * w[j] * a[j];
        }
    }
    for (u32 i = whole + threadIdx.x; i < dim; i += 256u) {
        squares += x[i] * x[i];
        product += d_y[i] * weight[i] * x[i];
    }
    float scale = 1.0f / sqrtf(over_block<Add>(squares) / (float)dim + eps);
    float along = over_block<Add>(product) * scale * scale / (float)dim;
    for (u32 i = threadIdx.x * 8u; i < whole; i += 2048u) {
        float a[8], w[8], d[8], sum[8];
        load8(a, x + i);
        load8(w, weight + i);
        load8(d, d_y + i);
        if (add) load8(sum, d_x + i);
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            float value = scale * (d[j] * w[j] - a[j] * along);
            sum[j] = add ? sum[j] + value : value;
        }
        store8(d_x + i, sum);
    }
    for (u32 i = whole + threadIdx.x; i < dim; i += 256u) {
        float value = scale * (d_y[i] * weight[i] - x[i] * along);
        d_x[i] = add ? d_x[i] + value : value;
    }
}
