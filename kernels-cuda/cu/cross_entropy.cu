// Losses of rows of logits and their gradients. A block a row, two reads of it; nothing of size vocab is kept beside the gradient.
//
// logits, teacher: [rows, vocab] f32   targets: [rows]   losses: [rows] f64   gradient: [rows, vocab] 16-bit
// cross_entropy: losses[r] = lse - logit of the target; gradient = scale (softmax - onehot).
// kl_divergence: losses[r] = KL(softmax(teacher) || softmax(logits)); gradient = scale (softmax(logits) - softmax(teacher)).
// grid (rows), 512 threads. Numerics: f32 terms; a row's maximum is subtracted first; sums over a block and logarithms in f64.
// Twin: reference/src/cross_entropy.rs.

#define THREADS 512u

struct Softmax { float top; double sum; };

__device__ __forceinline__ void take(float& top, float& sum, float x) {
    if (x > top) {
        sum = sum * expf(top - x) + 1.0f;
        top = x;
    } else {
        // A logit of -infinity before any other is no score at all.
        sum += x == -INFINITY ? 0.0f : expf(x - top);
    }
}

// Maximum and sum of exponentials of a row. NaN spreads to the sum.
__device__ __forceinline__ Softmax softmax(const float* __restrict__ row, u32 vocab) {
    float top = -INFINITY, sum = 0.0f;
    for (u32 i = threadIdx.x; i < vocab; i += THREADS) take(top, sum, row[i]);
    float all = over_block<Max>(top);
    double share = sum == 0.0f ? 0.0 : (double)sum * exp((double)(top - all));
    return {all, over_block<Add>(share)};
}

extern "C" __global__ void __launch_bounds__(THREADS) cross_entropy(
    const float* __restrict__ logits, const u32* __restrict__ targets, double* __restrict__ losses, u16* __restrict__ gradient,
    u32 vocab, float scale) {
    const float* row = logits + (u64)blockIdx.x * vocab;
    u16* to = gradient + (u64)blockIdx.x * vocab;
    Softmax all = softmax(row, vocab);
    u32 target = targets[blockIdx.x];
    float inverse = (float)(1.0 / all.sum);
    for (u32 i = threadIdx.x; i < vocab; i += THREADS) {
        float p = expf(row[i] - all.top) * inverse;
        to[i] = narrow(scale * (i == target ? p - 1.0f : p));
    }
    if (threadIdx.x == 0u) losses[blockIdx.x] = log(all.sum) + ((double)all.top - (double)row[target]);
}

extern "C" __global__ void __launch_bounds__(THREADS) kl_divergence(
    const float* __restrict__ teacher, const float* __restrict__ logits, double* __restrict__ losses, u16* __restrict__ gradient,
    u32 vocab, float scale) {
    const float* from = teacher + (u64)blockIdx.x * vocab;
    const float* row = logits + (u64)blockIdx.x * vocab;
    u16* to = gradient + (u64)blockIdx.x * vocab;
    Softmax p_all = softmax(from, vocab), q_all = softmax(row, vocab);
    float p_inverse = (float)(1.0 / p_all.sum), q_inverse = (float)(1.0 / q_all.sum);
    double sum = 0.0;
    for (u32 i = threadIdx.x; i < vocab; i += THREADS) {
        float log_p = from[i] - p_all.top, log_q = row[i] - q_all.top;
        // Each rounded on its own, so that equal distributions differ by exactly nothing.
        float p = __fmul_rn(expf(log_p), p_inverse), q = __fmul_rn(expf(log_q), q_inverse);
        // A token that the teacher rules out adds nothing, even where its logit is -infinity.
        sum += p > 0.0f ? (double)(p * (log_p - log_q)) : (double)p;
        to[i] = narrow(scale * (q - p));
    }
    sum = over_block<Add>(sum);
    if (threadIdx.x == 0u) losses[blockIdx.x] = sum + (log(q_all.sum) - log(p_all.sum));
}
