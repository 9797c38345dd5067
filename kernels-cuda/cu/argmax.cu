// What rows of logits say: the token to go on with, which moves a batch's state on; and how likely given tokens were.
//
// logits: [rows, vocab] f32. Among equals the smallest token wins, NaN never does.
// argmax_step: lens: [batch] tokens cached; 0: idle   ids: [batch] the token to feed next   written: [batch] tokens written
//   limits: [batch] tokens to write at most   tokens: [batch, most] what was written   stops: [stop_count] tokens that end a text
//   A stop token is not written. A request that has ended becomes idle: lens 0. Otherwise its token is written, and lens grows.
// argmax_score: targets: [rows]   log_likelihoods: [rows] f32, natural   greedy: [rows] 1 where the target is the argmax
// grid (rows), 512 threads. Twin: reference/src/argmax.rs.

#define THREADS 512u

struct Best { float value; u32 id; };

__device__ __forceinline__ Best better(Best a, Best b) {
    return b.value > a.value || (b.value == a.value && b.id < a.id) ? b : a;
}

// The best token of a row: for every thread.
__device__ __forceinline__ Best best_of(const float* __restrict__ row, u32 vocab) {
    __shared__ Best bests[THREADS / 32u];
    Best best = {-INFINITY, ~0u};
    for (u32 i = threadIdx.x; i < vocab; i += THREADS) {
        float x = row[i];
        // Comparisons with NaN are false.
        if (x > best.value || (x == best.value && i < best.id)) best = {x, i};
    }
    for (u32 mask = 16; mask > 0; mask /= 2)
        best = better(best, {__shfl_xor_sync(~0u, best.value, mask), __shfl_xor_sync(~0u, best.id, mask)});
    if (threadIdx.x % 32u == 0u) bests[threadIdx.x / 32u] = best;
    __syncthreads();
    best = bests[0];
    for (u32 i = 1; i < THREADS / 32u; ++i) best = better(best, bests[i]);
    if (best.id == ~0u) best.id = 0u;
    return best;
}

extern "C" __global__ void __launch_bounds__(THREADS) argmax_step(
    const float* __restrict__ logits, u32* __restrict__ lens, u32* __restrict__ ids, u32* __restrict__ written,
    const u32* __restrict__ limits, u32* __restrict__ tokens, const u32* __restrict__ stops, u32 stop_count, u32 vocab, u32 most) {
    u32 row = blockIdx.x;
    u32 len = lens[row];
    if (len == 0u) return;
    u32 id = best_of(logits + (u64)row * vocab, vocab).id;
    if (threadIdx.x != 0u) return;
    bool ended = false;
    for (u32 i = 0; i < stop_count; ++i) ended = ended || stops[i] == id;
    u32 count = written[row];
    if (!ended) {
        tokens[(u64)row * most + count] = id;
        written[row] = count + 1u;
        ids[row] = id;
        ended = count + 1u >= limits[row];
    }
    lens[row] = ended ? 0u : len + 1u;
}

extern "C" __global__ void __launch_bounds__(THREADS) argmax_score(
    const float* __restrict__ logits, const u32* __restrict__ targets, float* __restrict__ log_likelihoods, u32* __restrict__ greedy,
    u32 vocab) {
    const float* row = logits + (u64)blockIdx.x * vocab;
    Best best = best_of(row, vocab);
    float sum = 0.0f;
    for (u32 i = threadIdx.x; i < vocab; i += THREADS) sum += expf(row[i] - best.value);
    sum = over_block<Add>(sum);
    if (threadIdx.x != 0u) return;
    u32 target = targets[blockIdx.x];
    log_likelihoods[blockIdx.x] = row[target] - best.value - logf(sum);
    greedy[blockIdx.x] = target == best.id ? 1u : 0u;
}
