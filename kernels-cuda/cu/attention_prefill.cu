// Attention of a run of queries over linear keys, each KV head with its own span; with lse.
//
// q, out: heads x q_len x HEAD_DIM   k, v: kv_heads x kv_len x HEAD_DIM, 16-bit; read through tensor maps
// spans: [kv_heads] HeadSpan (sink and window are read)   lse: [heads, rows] f32, natural, rows = q_len rounded up to a
// multiple of 64; +infinity in rows that do not exist
// Queries sit at positions q_start + row, keys at their own index; kv_len = q_start + q_len.
//
// One warpgroup owns 64 query rows of one head; CONSUMERS of them share the K and V tiles that a producer fetches, so the query
// heads of a group share their loads. Numerics: f32 scores, running maximum and sums; probabilities rounded to 16 bits for the
// product with V. Twin: reference/src/attention_prefill.rs.

#define PANELS ((HEAD_DIM + 63u) / 64u)
#define OPERAND_BYTES (PANELS * TILE_BYTES)
#define STEPS (HEAD_DIM / 16u)
#define NO_MAX -1e30f

struct State { float shift, sum; };

// Takes row half H of a tile: scores become probabilities scaled by 2^-shift. Returns what earlier sums are scaled by.
template <int H>
__device__ __forceinline__ float soften(State& state, float (&scores)[32], float scale, bool all, Span span, u32 i, u32 j) {
    if (!all) {
#pragma unroll
        for (int n = 0; n < 8; ++n)
#pragma unroll
            for (int e = 0; e < 2; ++e)
                if (!attends(span, i, j + 8u * n + e)) scores[4 * n + 2 * H + e] = -INFINITY;
    }
    float top = NO_MAX;
#pragma unroll
    for (int n = 0; n < 8; ++n) top = fmaxf(top, fmaxf(scores[4 * n + 2 * H], scores[4 * n + 2 * H + 1]));
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
    float shift = fmaxf(state.shift, top * scale);
    float old = exp2_fast(state.shift - shift);
    float sum[2] = {state.sum * old, 0.0f};
#pragma unroll
    for (int n = 0; n < 8; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
            float p = exp2_fast(scores[4 * n + 2 * H + e] * scale - shift);
            scores[4 * n + 2 * H + e] = p;
            sum[e] += p;
        }
    state = {shift, sum[0] + sum[1]};
    return old;
}

extern "C" __global__ void __launch_bounds__(CONSUMERS * 128 + 128, 1) attention_prefill(
    const __grid_constant__ TensorMap q_map, const __grid_constant__ TensorMap k_map, const __grid_constant__ TensorMap v_map,
    const HeadSpan* __restrict__ spans, u32* __restrict__ out, float* __restrict__ lse,
    u32 q_len, u32 q_start, u32 group, u32 out_head_stride, u32 out_row_stride, float scale) {
    extern __shared__ char raw[];
    u32 base = (smem_address(raw) + 1023u) & ~1023u;
    u32 rows = base;
    u32 stages = base + CONSUMERS * OPERAND_BYTES;
    u32 barriers = stages + STAGES * 2u * OPERAND_BYTES;
    u32 warp = threadIdx.x / 32u, lane = threadIdx.x % 32u;

    u32 kv_head = blockIdx.y;
    u32 slots = (q_len + 63u) / 64u * group;
    u32 block_first = (gridDim.x - 1u - blockIdx.x) * CONSUMERS;
    u32 block_end = min(block_first + CONSUMERS, slots);
    Span span = {spans[kv_head].sink, spans[kv_head].window};
    KeyTiles tiles(span, q_start + block_first / group * 64u, q_start + min((block_end - 1u) / group * 64u + 63u, q_len - 1u));
    u32 steps = tiles.count();

    if (threadIdx.x == 0) {
        barrier_init(barriers, 1);
        for (u32 i = 0; i < STAGES; ++i) {
            barrier_init(barriers + 8u + 16u * i, 1);
            barrier_init(barriers + 16u + 16u * i, CONSUMERS * 4u);
        }
        barrier_init_fence();
    }
    __syncthreads();

    if (warp >= CONSUMERS * 4u) {
        give_registers<24>();
        if (threadIdx.x != CONSUMERS * 128u) return;
        barrier_expect(barriers, (block_end - block_first) * OPERAND_BYTES);
        for (u32 slot = block_first; slot < block_end; ++slot)
            for (u32 panel = 0; panel < PANELS; ++panel)
                copy_tile(rows + (slot - block_first) * OPERAND_BYTES + panel * TILE_BYTES, &q_map, barriers, panel * 64u,
                          slot / group * 64u, kv_head * group + slot % group);
        for (u32 step = 0; step < steps; ++step) {
            u32 stage = step % STAGES, round = step / STAGES;
            u32 full = barriers + 8u + 16u * stage, empty = barriers + 16u + 16u * stage;
            if (round > 0u) barrier_wait(empty, (round - 1u) & 1u);
            barrier_expect(full, 2u * OPERAND_BYTES);
            u32 to = stages + stage * 2u * OPERAND_BYTES;
            u32 row = tiles.at(step) * 64u;
            for (u32 panel = 0; panel < PANELS; ++panel) {
                copy_tile(to + panel * TILE_BYTES, &k_map, full, panel * 64u, row, kv_head);
                copy_tile(to + OPERAND_BYTES + panel * TILE_BYTES, &v_map, full, panel * 64u, row, kv_head);
            }
        }
        return;
    }
    take_registers<160>();

    u32 consumer = warp / 4u, quarter = warp % 4u;
    u32 slot = block_first + consumer;
    bool busy = slot < block_end;
    u32 first_row = slot / group * 64u;
    u32 first = q_start + first_row;
    KeyTiles own(span, first, q_start + min(first_row + 63u, q_len - 1u));
    u32 row = quarter * 16u + lane / 4u;
    u64 q_tile = tile_descriptor(rows + consumer * OPERAND_BYTES);
    if (busy) barrier_wait(barriers, 0);

    State upper = {NO_MAX, 0.0f}, lower = {NO_MAX, 0.0f};
    float scores[32], sums[PANELS][32];
#pragma unroll
    for (u32 panel = 0; panel < PANELS; ++panel)
#pragma unroll
        for (int i = 0; i < 32; ++i) sums[panel][i] = 0.0f;

    for (u32 step = 0; step < steps; ++step) {
        u32 stage = step % STAGES;
        u32 full = barriers + 8u + 16u * stage, empty = barriers + 16u + 16u * stage;
        u32 tile = tiles.at(step);
        barrier_wait(full, (step / STAGES) & 1u);
        if (!busy || !own.holds(tile)) {
            if (lane == 0u) barrier_arrive(empty);
            continue;
        }
        u32 k_tile = stages + stage * 2u * OPERAND_BYTES;
        wgmma_fence();
        multiply_channels<STEPS>(scores, q_tile, tile_descriptor(k_tile));
        wgmma_commit();
        wgmma_wait();
        wgmma_written(scores);
        bool all = all_attend(span, first, tile * 64u);
        u32 j = tile * 64u + (lane & 3u) * 2u;
        float old_upper = soften<0>(upper, scores, scale, all, span, first + row, j);
        float old_lower = soften<1>(lower, scores, scale, all, span, first + row + 8u, j);
        u32 p[4][4];
        pack_tile(p, scores);
#pragma unroll
        for (u32 panel = 0; panel < PANELS; ++panel)
#pragma unroll
            for (int n = 0; n < 8; ++n)
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                    sums[panel][4 * n + e] *= old_upper;
                    sums[panel][4 * n + 2 + e] *= old_lower;
                }
        wgmma_fence();
#pragma unroll
        for (u32 panel = 0; panel < PANELS; ++panel)
            multiply_rows(sums[panel], p, transposed_descriptor(k_tile + OPERAND_BYTES + panel * TILE_BYTES));
        wgmma_commit();
        wgmma_wait();
#pragma unroll
        for (u32 panel = 0; panel < PANELS; ++panel) wgmma_written(sums[panel]);
        if (lane == 0u) barrier_arrive(empty);
    }
    if (!busy) return;

    u32 head = kv_head * group + slot % group;
    u32 padded = (q_len + 63u) & ~63u;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        State state = h == 0 ? upper : lower;
        float sum = state.sum;
        sum += __shfl_xor_sync(~0u, sum, 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
        u32 at = first_row + row + 8u * h;
        bool live = at < q_len;
        if ((lane & 3u) == 0u) lse[(u64)head * padded + at] = live ? (state.shift + log2f(sum)) * 0.6931471805599453f : INFINITY;
        float inverse = 1.0f / sum;
        u32* to = out + ((u64)head * out_head_stride + (u64)at * out_row_stride) / 2u + (lane & 3u);
#pragma unroll
        for (u32 panel = 0; panel < PANELS; ++panel)
#pragma unroll
            for (u32 n = 0; n < 8u; ++n)
                if (live && panel * 64u + n * 8u < HEAD_DIM)
                    to[panel * 32u + n * 4u] = pack(sums[panel][4 * n + 2 * h] * inverse, sums[panel][4 * n + 2 * h + 1] * inverse);
    }
}
