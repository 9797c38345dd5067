// Gradients of masked attention's inputs, queries and keys both at positions 0..len.
//
// q, grad_out, grad_q, out: heads x len x HEAD_DIM   k, v, grad_k, grad_v: kv_heads x len x HEAD_DIM, 16-bit
// lse, row_dot: [heads, rows] f32, rows = len rounded up to a multiple of 64; lse as attention_prefill writes it
// spans: [kv_heads] HeadSpan
//
// Three kernels: attention_row_dot (D = rowsum(grad_out * out)), attention_grad_q (a warpgroup owns 64 queries, keys stream by) and
// attention_grad_kv (a warpgroup owns 64 keys, the queries of all heads of its group stream by). Scores are computed twice, and
// nothing is added atomically: the same input gives the same bytes. With g = grad_out v^T: dL/dscore = A (g - D).
// Numerics: f32 sums; A and dL/dscore rounded to 16 bits for the products. Twin: reference/src/attention_backward.rs.

#define PANELS ((HEAD_DIM + 63u) / 64u)
#define OPERAND_BYTES (PANELS * TILE_BYTES)
#define STEPS (HEAD_DIM / 16u)
#define LOG2_E 1.4426950408889634f
#define ROWS_BYTES 512u

#if ELEMENT_BF16
__device__ __forceinline__ float low(u32 both) { return __uint_as_float(both << 16); }
__device__ __forceinline__ float high(u32 both) { return __uint_as_float(both & 0xFFFF0000u); }
#else
__device__ __forceinline__ float half_value(unsigned short bits) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
}
__device__ __forceinline__ float low(u32 both) { return half_value((unsigned short)(both & 0xFFFFu)); }
__device__ __forceinline__ float high(u32 both) { return half_value((unsigned short)(both >> 16)); }
#endif

// A warp a row: grid (rows / 8, heads), 256 threads. Rows that do not exist get 0.
extern "C" __global__ void __launch_bounds__(256) attention_row_dot(
    const u32* __restrict__ out, const u32* __restrict__ grad_out, float* __restrict__ row_dot, u32 len, u32 head_stride, u32 row_stride) {
    u32 row = blockIdx.x * 8u + threadIdx.x / 32u, lane = threadIdx.x % 32u;
    u32 padded = (len + 63u) & ~63u;
    if (row >= padded) return;
    float sum = 0.0f;
    if (row < len) {
        u64 at = ((u64)blockIdx.y * head_stride + (u64)row * row_stride) / 2u;
        for (u32 i = lane; i < HEAD_DIM / 2u; i += 32u) {
            u32 a = out[at + i], b = grad_out[at + i];
            sum += low(a) * low(b) + high(a) * high(b);
        }
    }
    for (u32 mask = 16; mask > 0; mask /= 2) sum += __shfl_xor_sync(~0u, sum, mask);
    if (lane == 0u) row_dot[(u64)blockIdx.y * padded + row] = sum;
}

// Stores one row half of a product.
template <int H>
__device__ __forceinline__ void store(u32* to, const float (&d)[PANELS][32], float factor) {
#pragma unroll
    for (u32 panel = 0; panel < PANELS; ++panel)
#pragma unroll
        for (u32 n = 0; n < 8u; ++n)
            if (panel * 64u + n * 8u < HEAD_DIM)
                to[panel * 32u + n * 4u] = pack(d[panel][4 * n + 2 * H] * factor, d[panel][4 * n + 2 * H + 1] * factor);
}

__device__ __forceinline__ void clear(float (&d)[PANELS][32]) {
#pragma unroll
    for (u32 panel = 0; panel < PANELS; ++panel)
#pragma unroll
        for (int i = 0; i < 32; ++i) d[panel][i] = 0.0f;
}

extern "C" __global__ void __launch_bounds__(CONSUMERS * 128 + 128, 1) attention_grad_q(
    const __grid_constant__ TensorMap q_map, const __grid_constant__ TensorMap k_map,
    const __grid_constant__ TensorMap v_map, const __grid_constant__ TensorMap grad_map,
    const HeadSpan* __restrict__ spans, const float* __restrict__ lse, const float* __restrict__ row_dot, u32* __restrict__ grad_q,
    u32 len, u32 group, u32 head_stride, u32 row_stride, float softmax_scale) {
    extern __shared__ char raw[];
    u32 base = (smem_address(raw) + 1023u) & ~1023u;
    u32 rows = base;
    u32 stages = base + CONSUMERS * 2u * OPERAND_BYTES;
    u32 barriers = stages + STAGES * 2u * OPERAND_BYTES;
    u32 warp = threadIdx.x / 32u, lane = threadIdx.x % 32u;
    u32 kv_head = blockIdx.y;
    u32 slots = (len + 63u) / 64u * group;
    u32 block_first = (gridDim.x - 1u - blockIdx.x) * CONSUMERS;
    u32 block_end = min(block_first + CONSUMERS, slots);
    Span span = {spans[kv_head].sink, spans[kv_head].window};
    KeyTiles tiles(span, block_first / group * 64u, min((block_end - 1u) / group * 64u + 63u, len - 1u));
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
        barrier_expect(barriers, (block_end - block_first) * 2u * OPERAND_BYTES);
        for (u32 slot = block_first; slot < block_end; ++slot)
            for (u32 panel = 0; panel < PANELS; ++panel) {
                u32 to = rows + (slot - block_first) * 2u * OPERAND_BYTES + panel * TILE_BYTES;
                copy_tile(to, &q_map, barriers, panel * 64u, slot / group * 64u, kv_head * group + slot % group);
                copy_tile(to + OPERAND_BYTES, &grad_map, barriers, panel * 64u, slot / group * 64u, kv_head * group + slot % group);
            }
        for (u32 step = 0; step < steps; ++step) {
            u32 stage = step % STAGES, round = step / STAGES;
            u32 full = barriers + 8u + 16u * stage, empty = barriers + 16u + 16u * stage;
            if (round > 0u) barrier_wait(empty, (round - 1u) & 1u);
            barrier_expect(full, 2u * OPERAND_BYTES);
            u32 to = stages + stage * 2u * OPERAND_BYTES;
            for (u32 panel = 0; panel < PANELS; ++panel) {
                copy_tile(to + panel * TILE_BYTES, &k_map, full, panel * 64u, tiles.at(step) * 64u, kv_head);
                copy_tile(to + OPERAND_BYTES + panel * TILE_BYTES, &v_map, full, panel * 64u, tiles.at(step) * 64u, kv_head);
            }
        }
        return;
    }
    take_registers<160>();
    u32 consumer = warp / 4u, quarter = warp % 4u;
    u32 slot = block_first + consumer;
    bool busy = slot < block_end;
    u32 first = slot / group * 64u;
    u32 head = kv_head * group + slot % group;
    KeyTiles own(span, first, min(first + 63u, len - 1u));
    u32 row = quarter * 16u + lane / 4u;
    u64 q_tile = tile_descriptor(rows + consumer * 2u * OPERAND_BYTES);
    u64 grad_tile = tile_descriptor(rows + consumer * 2u * OPERAND_BYTES + OPERAND_BYTES);
    float shift[2] = {0.0f, 0.0f}, dot[2] = {0.0f, 0.0f};
    if (busy) {
        u64 at = (u64)head * ((len + 63u) & ~63u) + first + row;
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            shift[h] = lse[at + 8u * h] * LOG2_E;
            dot[h] = row_dot[at + 8u * h];
        }
        barrier_wait(barriers, 0);
    }
    float scale = softmax_scale * LOG2_E;
    float scores[32], grads[32], sums[PANELS][32];
    clear(sums);
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
        multiply_channels<STEPS>(grads, grad_tile, tile_descriptor(k_tile + OPERAND_BYTES));
        wgmma_commit();
        wgmma_wait();
        wgmma_written(scores);
        wgmma_written(grads);
        bool all = all_attend(span, first, tile * 64u);
        u32 j = tile * 64u + (lane & 3u) * 2u;
#pragma unroll
        for (int i = 0; i < 32; ++i) {
            int h = i / 2 % 2;
            float p = exp2_fast(scores[i] * scale - shift[h]);
            if (!all && !attends(span, first + row + 8u * h, j + 8u * (i / 4) + i % 2)) p = 0.0f;
            scores[i] = p * (grads[i] - dot[h]);
        }
        u32 d[4][4];
        pack_tile(d, scores);
        wgmma_fence();
#pragma unroll
        for (u32 panel = 0; panel < PANELS; ++panel) multiply_rows(sums[panel], d, transposed_descriptor(k_tile + panel * TILE_BYTES));
        wgmma_commit();
        wgmma_wait();
#pragma unroll
        for (u32 panel = 0; panel < PANELS; ++panel) wgmma_written(sums[panel]);
        if (lane == 0u) barrier_arrive(empty);
    }
    if (!busy) return;
    u32* to = grad_q + ((u64)head * head_stride + (u64)(first + row) * row_stride) / 2u + (lane & 3u);
    if (first + row < len) store<0>(to, sums, softmax_scale);
    if (first + row + 8u < len) store<1>(to + 4u * row_stride, sums, softmax_scale);
}

// Query tiles that see some key of [first, last], for one head: from first / 64 to `high`.
__device__ __forceinline__ u32 last_query_tile(Span span, u32 first, u32 last, u32 len) {
    u32 end = (len - 1u) / 64u;
    if (first < span.sink || last >= len - min(span.window, len)) return end;
    return min(end, (last + span.window - 1u) / 64u);
}

extern "C" __global__ void __launch_bounds__(KV_CONSUMERS * 128 + 128, 1) attention_grad_kv(
    const __grid_constant__ TensorMap q_map, const __grid_constant__ TensorMap k_map,
    const __grid_constant__ TensorMap v_map, const __grid_constant__ TensorMap grad_map,
    const HeadSpan* __restrict__ spans, const float* __restrict__ lse, const float* __restrict__ row_dot,
    u32* __restrict__ grad_k, u32* __restrict__ grad_v,
    u32 len, u32 group, u32 head_stride, u32 row_stride, float softmax_scale) {
    extern __shared__ char raw[];
    constexpr u32 STAGE_BYTES = 2u * OPERAND_BYTES + 1024u;
    u32 base = (smem_address(raw) + 1023u) & ~1023u;
    u32 keys = base;                                            // KV_CONSUMERS x (k, v)
    u32 stages = base + KV_CONSUMERS * 2u * OPERAND_BYTES;      // KV_STAGES x (q, grad_out, lse, row_dot)
    u32 barriers = stages + KV_STAGES * STAGE_BYTES;
    u32 warp = threadIdx.x / 32u, lane = threadIdx.x % 32u;
    u32 kv_head = blockIdx.y;
    u32 key_tiles = (len + 63u) / 64u, padded = key_tiles * 64u;
    u32 block_first = blockIdx.x * KV_CONSUMERS;                // the first keys have the most queries
    u32 block_end = min(block_first + KV_CONSUMERS, key_tiles);
    Span span = {spans[kv_head].sink, spans[kv_head].window};
    u32 high = 0;
    for (u32 tile = block_first; tile < block_end; ++tile) high = max(high, last_query_tile(span, tile * 64u, tile * 64u + 63u, len));
    u32 per_head = high - block_first + 1u;
    u32 steps = per_head * group;

    if (threadIdx.x == 0) {
        barrier_init(barriers, 1);
        for (u32 i = 0; i < KV_STAGES; ++i) {
            barrier_init(barriers + 8u + 16u * i, 1);
            barrier_init(barriers + 16u + 16u * i, KV_CONSUMERS * 4u);
        }
        barrier_init_fence();
    }
    __syncthreads();
    if (warp >= KV_CONSUMERS * 4u) {
        give_registers<24>();
        if (threadIdx.x != KV_CONSUMERS * 128u) return;
        barrier_expect(barriers, (block_end - block_first) * 2u * OPERAND_BYTES);
        for (u32 tile = block_first; tile < block_end; ++tile)
            for (u32 panel = 0; panel < PANELS; ++panel) {
                u32 to = keys + (tile - block_first) * 2u * OPERAND_BYTES + panel * TILE_BYTES;
                copy_tile(to, &k_map, barriers, panel * 64u, tile * 64u, kv_head);
                copy_tile(to + OPERAND_BYTES, &v_map, barriers, panel * 64u, tile * 64u, kv_head);
            }
        for (u32 step = 0; step < steps; ++step) {
            u32 stage = step % KV_STAGES, round = step / KV_STAGES;
            u32 full = barriers + 8u + 16u * stage, empty = barriers + 16u + 16u * stage;
            if (round > 0u) barrier_wait(empty, (round - 1u) & 1u);
            barrier_expect(full, 2u * OPERAND_BYTES + ROWS_BYTES);
            u32 to = stages + stage * STAGE_BYTES;
            u32 head = kv_head * group + step / per_head, row = (block_first + step % per_head) * 64u;
            for (u32 panel = 0; panel < PANELS; ++panel) {
                copy_tile(to + panel * TILE_BYTES, &q_map, full, panel * 64u, row, head);
                copy_tile(to + OPERAND_BYTES + panel * TILE_BYTES, &grad_map, full, panel * 64u, row, head);
            }
            copy_bytes(to + 2u * OPERAND_BYTES, lse + (u64)head * padded + row, full, ROWS_BYTES / 2u);
            copy_bytes(to + 2u * OPERAND_BYTES + ROWS_BYTES / 2u, row_dot + (u64)head * padded + row, full, ROWS_BYTES / 2u);
        }
        return;
    }
    take_registers<240>();
    u32 consumer = warp / 4u, quarter = warp % 4u;
    u32 tile = block_first + consumer;
    bool busy = tile < block_end;
    u32 first = tile * 64u;
    u32 own_high = busy ? last_query_tile(span, first, first + 63u, len) : 0u;
    u32 row = quarter * 16u + lane / 4u;
    u64 k_tile = tile_descriptor(keys + consumer * 2u * OPERAND_BYTES);
    u64 v_tile = tile_descriptor(keys + consumer * 2u * OPERAND_BYTES + OPERAND_BYTES);
    if (busy) barrier_wait(barriers, 0);
    float scale = softmax_scale * LOG2_E;
    float scores[32], grads[32], k_sums[PANELS][32], v_sums[PANELS][32];
    clear(k_sums);
    clear(v_sums);
    for (u32 step = 0; step < steps; ++step) {
        u32 stage = step % KV_STAGES;
        u32 full = barriers + 8u + 16u * stage, empty = barriers + 16u + 16u * stage;
        u32 query_tile = block_first + step % per_head;
        barrier_wait(full, (step / KV_STAGES) & 1u);
        if (!busy || query_tile < tile || query_tile > own_high) {
            if (lane == 0u) barrier_arrive(empty);
            continue;
        }
        u32 q_tile = stages + stage * STAGE_BYTES;
        u32 grad_tile = q_tile + OPERAND_BYTES;
        wgmma_fence();
        multiply_channels<STEPS>(scores, k_tile, tile_descriptor(q_tile));
        multiply_channels<STEPS>(grads, v_tile, tile_descriptor(grad_tile));
        wgmma_commit();
        wgmma_wait();
        wgmma_written(scores);
        wgmma_written(grads);
        bool all = all_attend(span, query_tile * 64u, first);
        u32 i0 = query_tile * 64u + (lane & 3u) * 2u;
        const float* stats = (const float*)__cvta_shared_to_generic(q_tile + 2u * OPERAND_BYTES);
#pragma unroll
        for (int n = 0; n < 8; ++n)
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                u32 column = 8u * n + (lane & 3u) * 2u + e;
                float shift = stats[column] * LOG2_E, dot = stats[64u + column];
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    int i = 4 * n + 2 * h + e;
                    float p = exp2_fast(scores[i] * scale - shift);
                    if (!all && !attends(span, i0 + 8u * n + e, first + row + 8u * h)) p = 0.0f;
                    scores[i] = p;
                    grads[i] = p * (grads[i] - dot);
                }
            }
        u32 p[4][4], d[4][4];
        pack_tile(p, scores);
        pack_tile(d, grads);
        wgmma_fence();
#pragma unroll
        for (u32 panel = 0; panel < PANELS; ++panel) {
            multiply_rows(v_sums[panel], p, transposed_descriptor(grad_tile + panel * TILE_BYTES));
            multiply_rows(k_sums[panel], d, transposed_descriptor(q_tile + panel * TILE_BYTES));
        }
        wgmma_commit();
        wgmma_wait();
#pragma unroll
        for (u32 panel = 0; panel < PANELS; ++panel) {
            wgmma_written(v_sums[panel]);
            wgmma_written(k_sums[panel]);
        }
        if (lane == 0u) barrier_arrive(empty);
    }
    if (!busy) return;
    u64 at = ((u64)kv_head * head_stride + (u64)(first + row) * row_stride) / 2u + (lane & 3u);
    if (first + row < len) {
        store<0>(grad_k + at, k_sums, softmax_scale);
        store<0>(grad_v + at, v_sums, 1.0f);
    }
    if (first + row + 8u < len) {
        store<1>(grad_k + at + 4u * row_stride, k_sums, softmax_scale);
        store<1>(grad_v + at + 4u * row_stride, v_sums, 1.0f);
    }
}
