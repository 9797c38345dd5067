// What hiding single entries would cost: sums by the span that first shows an entry, and by 64 x 64 blocks, in two passes.
//
// q, grad_out: heads x len x HEAD_DIM   k, v: kv_heads x len x HEAD_DIM, 16-bit, through tensor maps
// spans: [kv_heads] HeadSpan, what the model runs under   statistics: [heads, rows], rows = len rounded up to a multiple of 64
// partials: float4 by slot, warp and distance in tiles, see bins_before: sums of |E| above the cut, below it, of the queries' own
// keys, and of E.
//
// influence_rows walks the visible keys: lse, D = mean of g = grad_out v^T, and of the largest entry its key and its effect, from the sums over
// all other keys. influence_entries walks all causal keys. With A = 2^-t and the sums of a visible entry's others never larger than the
// whole, E = A (D - g) / (1 - A) = (D - g) / (2^t - 1); the largest entry, where that would cancel, is taken from the first pass, so
// 2^t >= 2 everywhere else. An entry that the spans hide is hidden again after it was shown: E = (D - g) / (2^t + 1).
// Warpgroups, slots and the cut as in influence.cu. The same input gives the same bytes. Twin: reference/src/influence_entries.rs.

#define PANELS ((HEAD_DIM + 63u) / 64u)
#define OPERAND_BYTES (PANELS * TILE_BYTES)
#define STEPS (HEAD_DIM / 16u)
#define NO_MAX -1e30f
#define LN_2 0.6931471805599453f
#define LOG2_E 1.4426950408889634f
// An entry beside which the others keep less than this share counts 0.
#define LEAST_REST 1e-12f

// What one thread knows of one row: its largest entry, and the sums over the others, all scaled by 2^-shift.
struct Row { float top, shift, weight, top_grad, mass, grad; u32 top_key; };

// Takes row half H of a tile. Keys start at j for this thread.
template <int H>
__device__ __forceinline__ void take(Row& row, float (&scores)[32], const float (&grads)[32], float scale, bool all, Span span, u32 i, u32 j) {
    float top = NO_MAX;
#pragma unroll
    for (int n = 0; n < 8; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
            float& score = scores[4 * n + 2 * H + e];
            if (!all && !attends(span, i, j + 8u * n + e)) score = NO_MAX;
            top = fmaxf(top, score);
        }
    if (top > row.top) {
        // What was largest joins the others; the new largest leaves its tile.
        float shift = top * scale, old = exp2_fast(row.shift - shift);
        row.mass = (row.mass + row.weight) * old;
        row.grad = (row.grad + row.weight * row.top_grad) * old;
        row.top = top;
        row.shift = shift;
        row.weight = exp2_fast(top * scale - shift);
        bool found = false;
#pragma unroll
        for (int n = 0; n < 8; ++n)
#pragma unroll
            for (int e = 0; e < 2; ++e)
                if (!found && scores[4 * n + 2 * H + e] == top) {
                    found = true;
                    row.top_grad = grads[4 * n + 2 * H + e];
                    row.top_key = j + 8u * n + e;
                    scores[4 * n + 2 * H + e] = NO_MAX;
                }
    }
    if (row.top == NO_MAX) return;  // nothing visible yet: there is no scale to sum at
    float mass[2] = {row.mass, 0.0f}, grad[2] = {row.grad, 0.0f};
#pragma unroll
    for (int n = 0; n < 8; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
            float p = exp2_fast(scores[4 * n + 2 * H + e] * scale - row.shift);
            mass[e] += p;
            grad[e] += p * grads[4 * n + 2 * H + e];
        }
    row.mass = mass[0] + mass[1];
    row.grad = grad[0] + grad[1];
}

// Joins this thread's part of a row with that of the thread whose number differs in `mask`. A part without keys has the shift NO_MAX.
__device__ __forceinline__ void join(Row& row, u32 mask) {
    Row other;
    other.top = __shfl_xor_sync(~0u, row.top, mask);
    other.shift = __shfl_xor_sync(~0u, row.shift, mask);
    other.weight = __shfl_xor_sync(~0u, row.weight, mask);
    other.top_grad = __shfl_xor_sync(~0u, row.top_grad, mask);
    other.mass = __shfl_xor_sync(~0u, row.mass, mask);
    other.grad = __shfl_xor_sync(~0u, row.grad, mask);
    other.top_key = __shfl_xor_sync(~0u, row.top_key, mask);
    Row first = row, second = other;
    if (other.top > row.top) {
        first = other;
        second = row;
    }
    float factor = second.top == NO_MAX ? 0.0f : exp2_fast(second.shift - first.shift);
    row = first;
    row.mass += factor * (second.mass + second.weight);
    row.grad += factor * (second.grad + second.weight * second.top_grad);
}

// Barriers, and the tiles that both kernels bring in: q and grad_out of each warpgroup, a stream of k and v.
struct Shared {
    u32 rows, stages, barriers;
    __device__ __forceinline__ Shared(char* raw) {
        rows = (smem_address(raw) + 1023u) & ~1023u;
        stages = rows + CONSUMERS * 2u * OPERAND_BYTES;
        barriers = stages + STAGES * 2u * OPERAND_BYTES;
    }
    __device__ __forceinline__ u32 stage(u32 step) const { return stages + step % STAGES * 2u * OPERAND_BYTES; }
    __device__ __forceinline__ u32 full(u32 step) const { return barriers + 8u + 16u * (step % STAGES); }
    __device__ __forceinline__ u32 empty(u32 step) const { return full(step) + 8u; }
    __device__ __forceinline__ void init() const {
        if (threadIdx.x == 0) {
            barrier_init(barriers, 1);
            for (u32 i = 0; i < STAGES; ++i) {
                barrier_init(full(i), 1);
                barrier_init(empty(i), CONSUMERS * 4u);
            }
            barrier_init_fence();
        }
        __syncthreads();
    }
    // The producer's part: rows of `slots`, then the key tiles that `tile_at` lists.
    template <typename TileAt>
    __device__ __forceinline__ void produce(
        const TensorMap* q_map, const TensorMap* grad_map, const TensorMap* k_map, const TensorMap* v_map,
        u32 kv_head, u32 group, u32 first_slot, u32 end_slot, u32 steps, TileAt tile_at) const {
        barrier_expect(barriers, (end_slot - first_slot) * 2u * OPERAND_BYTES);
        for (u32 slot = first_slot; slot < end_slot; ++slot) {
            u32 to = rows + (slot - first_slot) * 2u * OPERAND_BYTES;
            u32 head = kv_head * group + slot % group, row = slot / group * TILE_ROWS;
            for (u32 panel = 0; panel < PANELS; ++panel) {
                copy_tile(to + panel * TILE_BYTES, q_map, barriers, panel * 64u, row, head);
                copy_tile(to + OPERAND_BYTES + panel * TILE_BYTES, grad_map, barriers, panel * 64u, row, head);
            }
        }
        for (u32 step = 0; step < steps; ++step) {
            u32 round = step / STAGES;
            if (round > 0u) barrier_wait(empty(step), (round - 1u) & 1u);
            barrier_expect(full(step), 2u * OPERAND_BYTES);
            u32 to = stage(step), row = tile_at(step) * TILE_ROWS;
            for (u32 panel = 0; panel < PANELS; ++panel) {
                copy_tile(to + panel * TILE_BYTES, k_map, full(step), panel * 64u, row, kv_head);
                copy_tile(to + OPERAND_BYTES + panel * TILE_BYTES, v_map, full(step), panel * 64u, row, kv_head);
            }
        }
    }
    // Scores and dL/dA of a warpgroup's rows and a key tile; afterwards the tile may be overwritten.
    __device__ __forceinline__ void multiply(float (&scores)[32], float (&grads)[32], u32 consumer, u32 step, u32 lane) const {
        u32 own = rows + consumer * 2u * OPERAND_BYTES;
        wgmma_fence();
        multiply_channels<STEPS>(scores, tile_descriptor(own), tile_descriptor(stage(step)));
        multiply_channels<STEPS>(grads, tile_descriptor(own + OPERAND_BYTES), tile_descriptor(stage(step) + OPERAND_BYTES));
        wgmma_commit();
        wgmma_wait();
        wgmma_written(scores);
        wgmma_written(grads);
        if (lane == 0u) barrier_arrive(empty(step));
    }
};

extern "C" __global__ void __launch_bounds__(CONSUMERS * 128 + 32, 1) influence_rows(
    const __grid_constant__ TensorMap q_map, const __grid_constant__ TensorMap k_map,
    const __grid_constant__ TensorMap v_map, const __grid_constant__ TensorMap grad_map,
    const HeadSpan* __restrict__ spans, float* __restrict__ lse, float* __restrict__ row_dot,
    u32* __restrict__ top_key, float* __restrict__ top_effect, u32 len, u32 group, float scale) {
    extern __shared__ char raw[];
    Shared shared(raw);
    u32 warp = threadIdx.x / 32u, lane = threadIdx.x % 32u, kv_head = blockIdx.y;
    u32 slots = (len + 63u) / 64u * group;
    u32 block_first = (gridDim.x - 1u - blockIdx.x) * CONSUMERS;
    u32 block_end = min(block_first + CONSUMERS, slots);
    Span span = {spans[kv_head].sink, spans[kv_head].window};
    KeyTiles tiles(span, block_first / group * 64u, min((block_end - 1u) / group * 64u + 63u, len - 1u));
    u32 steps = tiles.count();
    shared.init();
    if (warp == CONSUMERS * 4u) {
        if (lane == 0u)
            shared.produce(&q_map, &grad_map, &k_map, &v_map, kv_head, group, block_first, block_end, steps, [&](u32 step) { return tiles.at(step); });
        return;
    }
    u32 consumer = warp / 4u, slot = block_first + consumer;
    bool busy = slot < block_end;
    u32 first = slot / group * 64u, row = warp % 4u * 16u + lane / 4u;
    KeyTiles own(span, first, min(first + 63u, len - 1u));
    if (busy) barrier_wait(shared.barriers, 0);
    Row upper = {NO_MAX, NO_MAX, 0.0f, 0.0f, 0.0f, 0.0f, 0u}, lower = upper;
    float scores[32], grads[32];
    for (u32 step = 0; step < steps; ++step) {
        u32 tile = tiles.at(step);
        barrier_wait(shared.full(step), (step / STAGES) & 1u);
        if (!busy || !own.holds(tile)) {
            if (lane == 0u) barrier_arrive(shared.empty(step));
            continue;
        }
        shared.multiply(scores, grads, consumer, step, lane);
        bool all = all_attend(span, first, tile * 64u);
        u32 j = tile * 64u + (lane & 3u) * 2u;
        take<0>(upper, scores, grads, scale, all, span, first + row, j);
        take<1>(lower, scores, grads, scale, all, span, first + row + 8u, j);
    }
    if (!busy) return;
    u64 to = (u64)(kv_head * group + slot % group) * ((len + 63u) & ~63u) + first + row;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        Row r = h == 0 ? upper : lower;
        join(r, 1);
        join(r, 2);
        if ((lane & 3u) != 0u) continue;
        bool live = first + row + 8u * h < len;
        float all = r.mass + r.weight;
        float rest = r.mass / all;
        float effect = rest < LEAST_REST ? 0.0f : r.weight / all * (r.grad / r.mass - r.top_grad);
        lse[to + 8u * h] = live ? (r.shift + log2f(all)) * LN_2 : INFINITY;
        row_dot[to + 8u * h] = live ? (r.grad + r.weight * r.top_grad) / all : 0.0f;
        top_key[to + 8u * h] = live ? r.top_key : ~0u;
        top_effect[to + 8u * h] = live ? effect : 0.0f;
    }
}

// One row's statistics, lse in units of log 2.
struct Known { float lse, dot, top_effect; u32 top_key; };
struct Sums { float above, below, own, all; };

// Takes half H of warp W's rows. `sign` is -1 where the spans show the whole tile, 1 where they hide it, 0 where every entry is asked.
template <int W, int H>
__device__ __forceinline__ void add_entries(
    Sums& sums, const float (&scores)[32], const float (&grads)[32], const Known& known, float scale, float sign, bool diagonal,
    Span span, u32 i, u32 j, u32 lane) {
    constexpr int CUT = 2 * W + H;
    u32 row = lane / 4u, column = (lane & 3u) * 2u;
#pragma unroll
    for (int n = 0; n < 8; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
            if (diagonal && n > CUT) continue;
            u32 key = j + 8u * n + e;
            float rest = exp2_fast(known.lse - scores[4 * n + 2 * H + e] * scale);
            float side = sign != 0.0f ? sign : attends(span, i, key) ? -1.0f : 1.0f;
            float effect = __fdividef(known.dot - grads[4 * n + 2 * H + e], rest + side);
            if (key == known.top_key) effect = known.top_effect;
            bool after = n == CUT && column + e > row, own = n == CUT && column + e == row;
            if (diagonal && after) effect = 0.0f;
            float size = fabsf(effect);
            sums.all += effect;
            if (n > CUT || after) sums.above += size;
            else if (diagonal && own) sums.own += size;
            else sums.below += size;
        }
}

template <int W>
__device__ __forceinline__ Sums add_tile(
    const float (&scores)[32], const float (&grads)[32], const Known& upper, const Known& lower, float scale, float sign, bool diagonal,
    Span span, u32 i, u32 j, u32 lane) {
    Sums sums = {0.0f, 0.0f, 0.0f, 0.0f};
    add_entries<W, 0>(sums, scores, grads, upper, scale, sign, diagonal, span, i, j, lane);
    add_entries<W, 1>(sums, scores, grads, lower, scale, sign, diagonal, span, i + 8u, j, lane);
    return sums;
}

// Whether no element of a 64 x 64 tile below the diagonal is seen, queries from i, keys from j.
__device__ __forceinline__ bool none_attends(Span span, u32 i, u32 j) { return j >= span.sink && i - (j + 63u) >= span.window; }

extern "C" __global__ void __launch_bounds__(CONSUMERS * 128 + 32, 1) influence_entries(
    const __grid_constant__ TensorMap q_map, const __grid_constant__ TensorMap k_map,
    const __grid_constant__ TensorMap v_map, const __grid_constant__ TensorMap grad_map,
    const HeadSpan* __restrict__ spans, const float* __restrict__ lse, const float* __restrict__ row_dot,
    const u32* __restrict__ top_key, const float* __restrict__ top_effect, float* __restrict__ partials,
    u32 len, u32 group, u32 first_kv_head, u32 first_slot, u32 end_slot, float scale) {
    extern __shared__ char raw[];
    Shared shared(raw);
    u32 warp = threadIdx.x / 32u, lane = threadIdx.x % 32u;
    u32 kv_index = blockIdx.y, kv_head = first_kv_head + kv_index;
    u32 block_first = first_slot + (gridDim.x - 1u - blockIdx.x) * CONSUMERS;
    u32 block_end = min(block_first + CONSUMERS, end_slot);
    u32 last = (block_end - 1u) / group, steps = last + 1u;
    Span span = {spans[kv_head].sink, spans[kv_head].window};
    shared.init();
    if (warp == CONSUMERS * 4u) {
        if (lane == 0u)
            shared.produce(&q_map, &grad_map, &k_map, &v_map, kv_head, group, block_first, block_end, steps, [&](u32 step) { return last - step; });
        return;
    }
    u32 consumer = warp / 4u, quarter = warp % 4u, slot = block_first + consumer;
    bool busy = slot < block_end;
    u32 tile = slot / group, row = tile * TILE_ROWS + quarter * 16u + lane / 4u;
    Known known[2];
    float4* bins = (float4*)partials;
    if (busy) {
        u64 at = (u64)(kv_head * group + slot % group) * ((len + 63u) & ~63u) + row;
#pragma unroll
        for (int h = 0; h < 2; ++h)
            known[h] = {lse[at + 8u * h] * LOG2_E, row_dot[at + 8u * h], top_effect[at + 8u * h], top_key[at + 8u * h]};
        bins += 4u * bins_before(kv_index, slot, first_slot, end_slot, group) + (u64)quarter * (tile + 1u);
        barrier_wait(shared.barriers, 0);
    }
    float scores[32], grads[32];
    for (u32 step = 0; step < steps; ++step) {
        u32 key_tile = last - step;
        barrier_wait(shared.full(step), (step / STAGES) & 1u);
        if (!busy || key_tile > tile) {
            if (lane == 0u) barrier_arrive(shared.empty(step));
            continue;
        }
        shared.multiply(scores, grads, consumer, step, lane);
        bool diagonal = key_tile == tile;
        float sign = all_attend(span, tile * 64u, key_tile * 64u) ? -1.0f
                   : !diagonal && none_attends(span, tile * 64u, key_tile * 64u) ? 1.0f : 0.0f;
        u32 j = key_tile * 64u + (lane & 3u) * 2u;
        Sums sums;
        if (quarter == 0u) sums = add_tile<0>(scores, grads, known[0], known[1], scale, sign, diagonal, span, row, j, lane);
        else if (quarter == 1u) sums = add_tile<1>(scores, grads, known[0], known[1], scale, sign, diagonal, span, row, j, lane);
        else if (quarter == 2u) sums = add_tile<2>(scores, grads, known[0], known[1], scale, sign, diagonal, span, row, j, lane);
        else sums = add_tile<3>(scores, grads, known[0], known[1], scale, sign, diagonal, span, row, j, lane);
        // Lane 0 to 3 end with one of the four sums each.
        bool odd = lane & 1u, high = lane & 2u;
        float x = exchange_sum(odd, sums.above, sums.below, 1), y = exchange_sum(odd, sums.own, sums.all, 1);
        float sum = exchange_sum(high, x, y, 2);
        sum += __shfl_xor_sync(~0u, sum, 4);
        sum += __shfl_xor_sync(~0u, sum, 8);
        sum += __shfl_xor_sync(~0u, sum, 16);
        if (lane < 4u) ((float*)(bins + (tile - key_tile)))[lane] = sum;
    }
}

// Adds a launch's partial sums to `shown`, [kv_heads][bins] f64: magnitudes of the entries that each span is the first to show. Sink keys and
// the queries' own are always shown. A block has 32 bins x 8 strides; the order is fixed.
extern "C" __global__ void __launch_bounds__(256) influence_shown(
    const float4* __restrict__ partials, double* __restrict__ shown,
    u32 bins, u32 group, u32 sink_tiles, u32 first_kv_head, u32 first_slot, u32 end_slot) {
    __shared__ double sums[8][32];
    u32 x = threadIdx.x % 32u, stride = threadIdx.x / 32u;
    u32 bin = blockIdx.x * 32u + x;
    double sum = 0.0;
    if (bin >= sink_tiles && bin < bins) {
        u32 distance = bin - sink_tiles;
        for (u32 slot = first_slot + stride; slot < end_slot; slot += 8u) {
            u32 tile = slot / group;
            if (tile < sink_tiles || distance > tile - sink_tiles) continue;
            const float4* from = partials + 4u * bins_before(blockIdx.y, slot, first_slot, end_slot, group) + distance;
#pragma unroll
            for (u32 warp = 0; warp < 4u; ++warp) {
                sum += from[(u64)warp * (tile + 1u)].y;
                if (distance < tile - sink_tiles) sum += from[(u64)warp * (tile + 1u) + 1u].x;
            }
        }
    }
    sums[stride][x] = sum;
    __syncthreads();
    if (stride == 0u && bin < bins) {
        for (u32 i = 1; i < 8u; ++i) sum += sums[i][x];
        shown[(u64)(first_kv_head + blockIdx.y) * bins + bin] += sum;
    }
}

// Writes a launch's blocks of the maps, [heads][side][side] f32 each. grid (slots, kv_heads of the launch), 128 threads.
extern "C" __global__ void __launch_bounds__(128) influence_maps(
    const float4* __restrict__ partials, float* __restrict__ abs_map, float* __restrict__ signed_map,
    u32 side, u32 group, u32 first_kv_head, u32 first_slot, u32 end_slot) {
    u32 slot = first_slot + blockIdx.x, tile = slot / group;
    u32 head = (first_kv_head + blockIdx.y) * group + slot % group;
    const float4* from = partials + 4u * bins_before(blockIdx.y, slot, first_slot, end_slot, group);
    for (u32 distance = threadIdx.x; distance <= tile; distance += 128u) {
        float size = 0.0f, sum = 0.0f;
#pragma unroll
        for (u32 warp = 0; warp < 4u; ++warp) {
            float4 part = from[(u64)warp * (tile + 1u) + distance];
            size += part.x + part.y + part.z;
            sum += part.w;
        }
        u64 to = ((u64)head * side + tile) * side + (tile - distance);
        abs_map[to] = size;
        signed_map[to] = sum;
    }
}
