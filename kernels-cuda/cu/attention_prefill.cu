// Attention of runs of queries, each KV head with its own span, over cached keys (sink slots and ring) and fresh ones; with lse.
//
// q, out: [rows, heads, HEAD_DIM] or [heads, rows, HEAD_DIM]   fresh k, v: the same with kv_heads; 16-bit, read through tensor maps
// cached k, v: slots [slot, HEAD_DIM] 16-bit, read through tensor maps; what a request had before its run, by RingLayout
// runs: [requests] PrefillRun   spans: [requests, kv_heads] HeadSpan   items: [blocks] PrefillItem
// lse: null, or [heads, rows] f32 of a single run, natural, rows rounded up to a multiple of 64; +infinity in rows that do not exist
//
// A request's queries sit at positions from q_start on; its keys from k_start on are fresh, those before are cached. What lies in
// a tile but outside the request's visible keys may be anything, NaN too: scores are replaced, rows of V are cleared.
//
// One warpgroup owns 64 query rows of one head; CONSUMERS of them share the K and V tiles that a producer fetches, so the query
// heads of a group share their loads. Numerics: f32 scores, running maximum and sums; probabilities rounded to 16 bits for the
// product with V. Twin: reference/src/attention_prefill.rs.

#define PANELS ((HEAD_DIM + 63u) / 64u)
#define OPERAND_BYTES (PANELS * TILE_BYTES)
#define STEPS (HEAD_DIM / 16u)
#define NO_MAX -1e30f

// 64 keys at positions that follow one another; only the first `live` rows are theirs.
struct Tile { u32 row, position, live; bool cached; };

// The key tiles of queries at positions [first, last]: fresh keys up to the last query, fresh and cached sink keys, and the cached
// window, in two pieces where the ring wraps around.
struct RunTiles {
    u32 k_start, k_row, end, low, local, fresh_sinks, sinks, cached_sinks, slot, ring_low, ring_slot, ring_before_wrap, ring_count, slot_after_wrap, pieces[2];
    __device__ __forceinline__ RunTiles(const PrefillRun& run, const HeadSpan& head, u32 first, u32 last) {
        k_start = run.k_start;
        k_row = run.k_row;
        end = run.q_start + run.q_len;
        u32 window_low = first + 1u > head.window ? first + 1u - head.window : 0u;
        low = k_start + (max(window_low, k_start) - k_start) / 64u * 64u;
        local = (last - low) / 64u + 1u;
        fresh_sinks = head.sink > k_start ? min((head.sink - k_start + 63u) / 64u, (low - k_start) / 64u) : 0u;
        sinks = min(head.sink, k_start);
        cached_sinks = (sinks + 63u) / 64u;
        slot = head.slot_offset;
        ring_low = max(window_low, head.sink);
        ring_count = k_start > ring_low ? k_start - ring_low : 0u;
        u32 turn = ring_count > 0u ? (ring_low - head.sink) % head.ring : 0u;
        ring_slot = slot + head.sink + turn;
        ring_before_wrap = ring_count > 0u ? min(ring_count, head.ring - turn) : 0u;
        slot_after_wrap = slot + head.sink;
        pieces[0] = (ring_before_wrap + 63u) / 64u;
        pieces[1] = (ring_count - ring_before_wrap + 63u) / 64u;
    }
    __device__ __forceinline__ u32 count() const { return local + fresh_sinks + cached_sinks + pieces[0] + pieces[1]; }
    // Tiles that may need clearing come last, behind a full pipeline.
    __device__ __forceinline__ Tile at(u32 step) const {
        if (step < local + fresh_sinks) {
            u32 position = step < local ? low + 64u * step : k_start + 64u * (step - local);
            return {k_row + (position - k_start), position, min(64u, end - position), false};
        }
        step -= local + fresh_sinks;
        if (step < cached_sinks) return {slot + 64u * step, 64u * step, min(64u, sinks - 64u * step), true};
        step -= cached_sinks;
        if (step < pieces[0]) return {ring_slot + 64u * step, ring_low + 64u * step, min(64u, ring_before_wrap - 64u * step), true};
        u32 done = 64u * (step - pieces[0]);
        return {slot_after_wrap + done, ring_low + ring_before_wrap + done, min(64u, ring_count - ring_before_wrap - done), true};
    }
};

struct State { float shift, sum; };

// Takes row half H of a tile: scores become probabilities scaled by 2^-shift. Returns what earlier sums are scaled by.
template <int H>
__device__ __forceinline__ float soften(State& state, float (&scores)[32], float scale, bool all, Span span, u32 i, u32 j, u32 j_end) {
    if (!all) {
#pragma unroll
        for (int n = 0; n < 8; ++n)
#pragma unroll
            for (int e = 0; e < 2; ++e)
                if (!attends(span, i, j + 8u * n + e) || j + 8u * n + e >= j_end) scores[4 * n + 2 * H + e] = -INFINITY;
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
    const __grid_constant__ TensorMap cached_k_map, const __grid_constant__ TensorMap cached_v_map,
    const PrefillRun* __restrict__ runs, const HeadSpan* __restrict__ spans, const PrefillItem* __restrict__ items,
    u32* __restrict__ out, float* __restrict__ lse, u32 kv_heads, u32 group, u32 out_head_stride, u32 out_row_stride, float scale) {
    extern __shared__ char raw[];
    u32 base = (smem_address(raw) + 1023u) & ~1023u;
    u32 rows = base;
    u32 stages = base + CONSUMERS * OPERAND_BYTES;
    u32 barriers = stages + STAGES * 2u * OPERAND_BYTES;
    u32 partly = barriers + 8u + 16u * STAGES;
    // Position and live rows of each stage's tile: written before the tile is full.
    __shared__ uint2 tiles[STAGES];
    u32 warp = threadIdx.x / 32u, lane = threadIdx.x % 32u;

    PrefillItem item = items[blockIdx.x];
    u32 kv_head = item.kv_head;
    PrefillRun run = runs[item.request];
    HeadSpan head = spans[item.request * kv_heads + kv_head];
    u32 q_len = run.q_len, q_start = run.q_start;
    u32 slots = (q_len + 63u) / 64u * group;
    u32 block_first = item.first;
    u32 block_end = min(block_first + CONSUMERS, slots);
    RunTiles keys(run, head, q_start + block_first / group * 64u, q_start + min((block_end - 1u) / group * 64u + 63u, q_len - 1u));
    u32 steps = keys.count();

    if (threadIdx.x == 0) {
        barrier_init(barriers, 1);
        for (u32 i = 0; i < STAGES; ++i) {
            barrier_init(barriers + 8u + 16u * i, 1);
            barrier_init(barriers + 16u + 16u * i, CONSUMERS * 4u);
        }
        barrier_init(partly, 1);
        barrier_init_fence();
    }
    __syncthreads();

    if (warp >= CONSUMERS * 4u) {
        give_registers<32>();
        if (warp != CONSUMERS * 4u) return;
        if (lane == 0u) {
            barrier_expect(barriers, (block_end - block_first) * OPERAND_BYTES);
            for (u32 slot = block_first; slot < block_end; ++slot)
                for (u32 panel = 0; panel < PANELS; ++panel)
                    copy_tile(rows + (slot - block_first) * OPERAND_BYTES + panel * TILE_BYTES, &q_map, barriers, panel * 64u,
                              run.q_row + slot / group * 64u, kv_head * group + slot % group);
        }
        u32 cleared = 0;
        for (u32 step = 0; step < steps; ++step) {
            u32 stage = step % STAGES, round = step / STAGES;
            u32 full = barriers + 8u + 16u * stage, empty = barriers + 16u + 16u * stage;
            u32 to = stages + stage * 2u * OPERAND_BYTES;
            Tile tile = keys.at(step);
            bool whole = tile.live == 64u;
            if (round > 0u) barrier_wait(empty, (round - 1u) & 1u);
            if (lane == 0u) {
                tiles[stage] = make_uint2(tile.position, tile.live);
                u32 arrived = whole ? full : partly;
                barrier_expect(arrived, 2u * OPERAND_BYTES);
                for (u32 panel = 0; panel < PANELS; ++panel) {
                    copy_tile(to + panel * TILE_BYTES, tile.cached ? &cached_k_map : &k_map, arrived, panel * 64u, tile.row,
                              tile.cached ? 0u : kv_head);
                    copy_tile(to + OPERAND_BYTES + panel * TILE_BYTES, tile.cached ? &cached_v_map : &v_map, arrived, panel * 64u,
                              tile.row, tile.cached ? 0u : kv_head);
                }
            }
            if (whole) continue;
            // 0 times NaN is NaN: rows of V that are not the tile's become zeros before anybody multiplies them.
            barrier_wait(partly, cleared & 1u);
            ++cleared;
            for (u32 panel = 0; panel < PANELS; ++panel)
                for (u32 at = tile.live * 128u + lane * 16u; at < TILE_BYTES; at += 512u)
                    asm volatile("st.shared.v4.u32 [%0], {%1, %1, %1, %1};"
                                 :: "r"(to + OPERAND_BYTES + panel * TILE_BYTES + at), "r"(0u) : "memory");
            asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
            __syncwarp();
            if (lane == 0u) barrier_arrive(full);
        }
        return;
    }
    take_registers<160>();

    u32 consumer = warp / 4u, quarter = warp % 4u;
    u32 slot = block_first + consumer;
    bool busy = slot < block_end;
    u32 first_row = slot / group * 64u;
    u32 first = q_start + first_row, last = q_start + min(first_row + 63u, q_len - 1u);
    Span span = {head.sink, head.window};
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
        barrier_wait(full, (step / STAGES) & 1u);
        // One lane reads, the one that says below that the stage may be overwritten.
        uint2 tile = lane == 0u ? tiles[stage] : make_uint2(0u, 0u);
        u32 position = __shfl_sync(~0u, tile.x, 0), live = __shfl_sync(~0u, tile.y, 0);
        bool seen = busy && position <= last && (position < span.sink || position + live + span.window > first + 1u);
        if (!seen) {
            if (lane == 0u) barrier_arrive(empty);
            continue;
        }
        u32 k_tile = stages + stage * 2u * OPERAND_BYTES;
        wgmma_fence();
        multiply_channels<STEPS>(scores, q_tile, tile_descriptor(k_tile));
        wgmma_commit();
        wgmma_wait();
        wgmma_written(scores);
        bool all = live == 64u && all_attend(span, first, position);
        u32 j = position + (lane & 3u) * 2u;
        float old_upper = soften<0>(upper, scores, scale, all, span, first + row, j, position + live);
        float old_lower = soften<1>(lower, scores, scale, all, span, first + row + 8u, j, position + live);
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

    u32 q_head = kv_head * group + slot % group;
    u32 padded = (q_len + 63u) & ~63u;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        State state = h == 0 ? upper : lower;
        float sum = state.sum;
        sum += __shfl_xor_sync(~0u, sum, 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
        u32 at = first_row + row + 8u * h;
        bool live = at < q_len;
        if (lse != nullptr && (lane & 3u) == 0u) lse[(u64)q_head * padded + at] = live ? (state.shift + log2f(sum)) * 0.6931471805599453f : INFINITY;
        float inverse = 1.0f / sum;
        u32* to = out + ((u64)q_head * out_head_stride + (u64)(run.q_row + at) * out_row_stride) / 2u + (lane & 3u);
#pragma unroll
        for (u32 panel = 0; panel < PANELS; ++panel)
#pragma unroll
            for (u32 n = 0; n < 8u; ++n)
                if (live && panel * 64u + n * 8u < HEAD_DIM)
                    to[panel * 32u + n * 4u] = pack(sums[panel][4 * n + 2 * h] * inverse, sums[panel][4 * n + 2 * h + 1] * inverse);
    }
}
