// Root mean square normalization of rows.
//
// x: [rows, dim] f32   weight: [dim] f32   y: [rows, dim] f32
// One CUDA block a row, blockDim.x a power of two of at most 1024.
// Numerics: squares are summed in f32, in each thread and then in a tree. Twin: reference/src/rms_norm.rs.

extern "C" __global__ void rms_norm(const float* x, const float* weight, float* y, unsigned int dim, float eps) {
    __shared__ float partial[1024];
    const float* row = x + (size_t)blockIdx.x * dim;
    float sum = 0.0f;
    for (unsigned int i = threadIdx.x; i < dim; i += blockDim.x) sum += row[i] * row[i];
    partial[threadIdx.x] = sum;
    __syncthreads();
    for (unsigned int stride = blockDim.x / 2; stride > 0; stride /= 2) {
        if (threadIdx.x < stride) partial[threadIdx.x] += partial[threadIdx.x + stride];
        __syncthreads();
    }
    float scale = rsqrtf(partial[0] / (float)dim + eps);
    for (unsigned int i = threadIdx.x; i < dim; i += blockDim.x) y[(size_t)blockIdx.x * dim + i] = row[i] * scale * weight[i];
}
