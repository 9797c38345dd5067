// What every window costs: the joint influence curves of a layer, in one pass over the causal half.
//
// q, grad_out: [heads, len, HEAD_DIM]   k, v: [kv_heads, len, HEAD_DIM], all 16-bit, through tensor maps
// row_dot: [heads, rows] f32, D = rowsum(grad_out * out); rows = len rounded up to a multiple of 64
// partials: [kv_heads of this launch][slot][warp of 4][bin] float4, see partial_offset
// curves: [kv_heads][3][bins] f64 (identity, absolute value, square), added to by influence_reduce
//
// A row i keeps K = the sink keys and its `window` most recent ones; its effect is G_K / m_K - D with
// m_K = sum of A_ij, G_K = sum of A_ij g_ij over K and g = grad_out v^T. Bin s stands for the span 64 (s + 1), that is
// for the window max(64 (s + 1) - sink, 1).
//
// One warpgroup owns one tile of 64 rows of one query head (a slot); CONSUMERS of them share a stream of K and V tiles that one
// more warp fetches, so a group's query heads share their loads. The order of keys is: the sink's tiles, then from the
// diagonal to the left. In the tile k tiles left of the diagonal, row r and column c (both within their tiles): c > r lies inside the
// window of 64 k keys, c <= r only inside the next one. So every tile is cut along the same diagonal, the window's
// edge is exact, and each warp knows at compile time which side a column group of 8 lies on.
//
// Numerics: m and G are f32, scaled by the running maximum of what one thread has kept (four threads share a row and
// are joined when a value is emitted), so a key that dominates from afar changes nothing before it is reached. The
// query's own key comes first. 1 - m is never formed. Sums of 16 rows in f32, then f64 in a fixed order: the same input gives
// the same bytes. Twin: reference/src/influence.rs.

#define PANELS ((HEAD_DIM + 63u) / 64u)
#define OPERAND_BYTES (PANELS * TILE_BYTES)
#define STEPS (HEAD_DIM / 16u)
#define NO_MAX -1e30f

// Which elements of a tile are taken: those above the cut, those below it, or all of them.
enum Part { UPPER, LOWER, ALL };

// What one thread has kept of one row; `shift` is the largest logit times log2(e), what mass and gradient are scaled by.
struct Kept { float shift, mass, grad; };

// Takes the elements of half H (row l/4 + 8H of warp W) on one side of the cut; `first` and `second` say whether
// the two elements in the column group that the cut passes through are on this side.
template <int W, int H, Part PART>
__device__ __forceinline__ void take(Kept& kept, const float (&scores)[32], const float (&grads)[32], float scale, bool first, bool second) {
    constexpr int CUT = 2 * W + H;
    constexpr int BEGIN = PART == UPPER ? CUT : 0;
    constexpr int END = PART == LOWER ? CUT + 1 : 8;
    float top = NO_MAX;
#pragma unroll
    for (int n = BEGIN; n < END; ++n) {
        float a = scores[4 * n + 2 * H], b = scores[4 * n + 2 * H + 1];
        if (PART != ALL && n == CUT) {
            a = first ? a : NO_MAX;
            b = second ? b : NO_MAX;
        }
        top = fmaxf(top, fmaxf(a, b));
    }
    // The shift is kept rounded, so that a maximum that stays scales by exactly 1.
    float shift = fmaxf(kept.shift, top * scale);
    float old = exp2_fast(kept.shift - shift);
    float mass[2] = {kept.mass * old, 0.0f}, grad[2] = {kept.grad * old, 0.0f};
#pragma unroll
    for (int n = BEGIN; n < END; ++n) {
        float a = exp2_fast(scores[4 * n + 2 * H] * scale - shift);
        float b = exp2_fast(scores[4 * n + 2 * H + 1] * scale - shift);
        if (PART != ALL && n == CUT) {
            a = first ? a : 0.0f;
            b = second ? b : 0.0f;
        }
        mass[0] += a;
        mass[1] += b;
        grad[0] += a * grads[4 * n + 2 * H];
        grad[1] += b * grads[4 * n + 2 * H + 1];
    }
    kept = {shift, mass[0] + mass[1], grad[0] + grad[1]};
}

// The query's own key, by the thread that holds it.
__device__ __forceinline__ void take_one(Kept& kept, float score, float grad, float scale) {
    float shift = fmaxf(kept.shift, score * scale);
    float old = exp2_fast(kept.shift - shift), p = exp2_fast(score * scale - shift);
    kept = {shift, kept.mass * old + p, kept.grad * old + p * grad};
}

__device__ __forceinline__ float exchange_max(bool odd, float even_value, float odd_value, u32 mask) {
    float give = odd ? even_value : odd_value;
    float keep = odd ? odd_value : even_value;
    return fmaxf(keep, __shfl_xor_sync(~0u, give, mask));
}

// Joins the four threads of each row, takes phi of the row's effect and sums over the warp's 16 rows.
// `dot` is D of the row that this lane stands for (even lanes the upper half, odd lanes the lower), `live` whether it exists.
// Lanes 0 to 3 write identity, absolute value, square and a zero.
__device__ __forceinline__ void emit(const Kept& upper, const Kept& lower, float dot, bool live, u32 lane, float* out) {
    bool odd = lane & 1u, high = lane & 2u;
    float top = exchange_max(odd, upper.shift, lower.shift, 1);
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
    float other = __shfl_xor_sync(~0u, top, 1);
    float factor_upper = exp2_fast(upper.shift - (odd ? other : top));
    float factor_lower = exp2_fast(lower.shift - (odd ? top : other));
    float mass = exchange_sum(odd, upper.mass * factor_upper, lower.mass * factor_lower, 1);
    float grad = exchange_sum(odd, upper.grad * factor_upper, lower.grad * factor_lower, 1);
    mass += __shfl_xor_sync(~0u, mass, 2);
    grad += __shfl_xor_sync(~0u, grad, 2);
    float effect = live ? __fdividef(grad, mass) - dot : 0.0f;
    // Lanes with bit 1 clear carry (d, |d|), the others (d^2, 0); bit 0 then chooses which of the two is summed.
    float x = high ? effect * effect : effect;
    float y = high ? 0.0f : fabsf(effect);
    float sum = exchange_sum(odd, x, y, 1);
    sum += __shfl_xor_sync(~0u, sum, 4);
    sum += __shfl_xor_sync(~0u, sum, 8);
    sum += __shfl_xor_sync(~0u, sum, 16);
    if (lane < 4u) out[lane] = sum;
}

// What a warp of the walk knows of its place.
struct Place {
    float scale;        // log2(e) * softmax_scale
    float dot;          // D of the row this lane stands for
    bool live;          // whether that row exists
    u32 lane;
    float* bins;        // this warp's bins
    u32 tile;           // row tile
    u32 sink_tiles;
};

template <int W>
__device__ __forceinline__ void visit(Kept& upper, Kept& lower, const float (&scores)[32], const float (&grads)[32], const Place& place, u32 key_tile) {
    // Row and column of this thread's elements, within the 8 x 8 piece that the cut passes through.
    int row = (int)(place.lane >> 2), column = (int)(place.lane & 3u) * 2;
    bool diagonal = key_tile == place.tile, sink = key_tile < place.sink_tiles;
    if (sink && !diagonal) {
        take<W, 0, ALL>(upper, scores, grads, place.scale, true, true);
        take<W, 1, ALL>(lower, scores, grads, place.scale, true, true);
        return;
    }
    if (!sink) {
        if (diagonal) {
            // The query's own key alone: the window of one.
            if (column == row) {
                take_one(upper, scores[8 * W], grads[8 * W], place.scale);
                take_one(lower, scores[8 * W + 6], grads[8 * W + 6], place.scale);
            } else if (column + 1 == row) {
                take_one(upper, scores[8 * W + 1], grads[8 * W + 1], place.scale);
                take_one(lower, scores[8 * W + 7], grads[8 * W + 7], place.scale);
            }
        } else {
            take<W, 0, UPPER>(upper, scores, grads, place.scale, column > row, column + 1 > row);
            take<W, 1, UPPER>(lower, scores, grads, place.scale, column > row, column + 1 > row);
        }
        u32 bin = place.tile - key_tile + place.sink_tiles;
        if (bin > 0u) emit(upper, lower, place.dot, place.live, place.lane, place.bins + 4u * (bin - 1u));
    }
    // On the diagonal the own key has been taken already, unless it is a sink key.
    bool own = !diagonal || sink;
    bool first = own ? column <= row : column < row, second = own ? column + 1 <= row : column + 1 < row;
    take<W, 0, LOWER>(upper, scores, grads, place.scale, first, second);
    take<W, 1, LOWER>(lower, scores, grads, place.scale, first, second);
}

// The order of key tiles that all consumers of a block share: sink tiles, then from `last` down.
__device__ __forceinline__ u32 key_tile_at(u32 step, u32 sink_steps, u32 last) {
    return step < sink_steps ? step : last - (step - sink_steps);
}

extern "C" __global__ void __launch_bounds__(CONSUMERS * 128 + 32, 1) influence(
    const __grid_constant__ TensorMap q_map, const __grid_constant__ TensorMap k_map,
    const __grid_constant__ TensorMap v_map, const __grid_constant__ TensorMap grad_map,
    const float* __restrict__ row_dot, float* __restrict__ partials,
    u32 len, u32 group, u32 sink_tiles, u32 first_kv_head, u32 first_slot, u32 end_slot, float scale) {
    extern __shared__ char raw[];
    u32 base = (smem_address(raw) + 1023u) & ~1023u;
    u32 rows = base;                                             // CONSUMERS x (q, grad_out)
    u32 stages = base + CONSUMERS * 2u * OPERAND_BYTES;          // STAGES x (k, v)
    u32 barriers = stages + STAGES * 2u * OPERAND_BYTES;         // rows ready; full and empty of each stage
    u32 warp = threadIdx.x / 32u, lane = threadIdx.x % 32u;

    // Long rows first, so that the last blocks to run are the short ones.
    u32 kv_index = blockIdx.y;
    u32 kv_head = first_kv_head + kv_index;
    u32 block_first = first_slot + (gridDim.x - 1u - blockIdx.x) * CONSUMERS;
    u32 block_end = min(block_first + CONSUMERS, end_slot);
    u32 last = (block_end - 1u) / group;
    u32 sink_steps = min(sink_tiles, last + 1u);
    u32 steps = last + 1u;

    if (threadIdx.x == 0) {
        barrier_init(barriers, 1);
        for (u32 i = 0; i < STAGES; ++i) {
            barrier_init(barriers + 8u + 16u * i, 1);
            barrier_init(barriers + 16u + 16u * i, CONSUMERS * 4u);
        }
        barrier_init_fence();
    }
    __syncthreads();

    if (warp == CONSUMERS * 4u) {
        if (lane != 0u) return;
        barrier_expect(barriers, (block_end - block_first) * 2u * OPERAND_BYTES);
        for (u32 slot = block_first; slot < block_end; ++slot) {
            u32 to = rows + (slot - block_first) * 2u * OPERAND_BYTES;
            u32 head = kv_head * group + slot % group, row = slot / group * TILE_ROWS;
            for (u32 panel = 0; panel < PANELS; ++panel) {
                copy_tile(to + panel * TILE_BYTES, &q_map, barriers, panel * 64u, row, head);
                copy_tile(to + OPERAND_BYTES + panel * TILE_BYTES, &grad_map, barriers, panel * 64u, row, head);
            }
        }
        for (u32 step = 0; step < steps; ++step) {
            u32 stage = step % STAGES, round = step / STAGES;
            u32 full = barriers + 8u + 16u * stage, empty = barriers + 16u + 16u * stage;
            if (round > 0u) barrier_wait(empty, (round - 1u) & 1u);
            barrier_expect(full, 2u * OPERAND_BYTES);
            u32 to = stages + stage * 2u * OPERAND_BYTES;
            u32 row = key_tile_at(step, sink_steps, last) * TILE_ROWS;
            for (u32 panel = 0; panel < PANELS; ++panel) {
                copy_tile(to + panel * TILE_BYTES, &k_map, full, panel * 64u, row, kv_head);
                copy_tile(to + OPERAND_BYTES + panel * TILE_BYTES, &v_map, full, panel * 64u, row, kv_head);
            }
        }
        return;
    }

    u32 consumer = warp / 4u, quarter = warp % 4u;
    u32 slot = block_first + consumer;
    bool busy = slot < block_end;
    u32 tile = slot / group;
    Place place;
    place.scale = scale;
    place.lane = lane;
    place.tile = tile;
    place.sink_tiles = sink_tiles;
    place.dot = 0.0f;
    place.live = false;
    place.bins = partials;
    if (busy) {
        u32 row = tile * TILE_ROWS + quarter * 16u + (lane & 1u) * 8u + lane / 4u;
        u32 head = kv_head * group + slot % group;
        place.live = row < len;
        if (place.live) place.dot = row_dot[(u64)head * ((len + 63u) & ~63u) + row];
        place.bins = partials + 4u * (partial_offset(kv_index, slot, first_slot, end_slot, group) + (u64)quarter * (tile + 1u));
        barrier_wait(barriers, 0);
    }
    u64 q_tile = tile_descriptor(rows + consumer * 2u * OPERAND_BYTES);
    u64 grad_tile = tile_descriptor(rows + consumer * 2u * OPERAND_BYTES + OPERAND_BYTES);

    Kept upper = {NO_MAX, 0.0f, 0.0f}, lower = {NO_MAX, 0.0f, 0.0f};
    float scores[32], grads[32];
    for (u32 step = 0; step < steps; ++step) {
        u32 stage = step % STAGES;
        u32 full = barriers + 8u + 16u * stage, empty = barriers + 16u + 16u * stage;
        u32 key_tile = key_tile_at(step, sink_steps, last);
        barrier_wait(full, (step / STAGES) & 1u);
        if (!busy || key_tile > tile) {
            if (lane == 0u) barrier_arrive(empty);
            continue;
        }
        u64 k_tile = tile_descriptor(stages + stage * 2u * OPERAND_BYTES);
        u64 v_tile = tile_descriptor(stages + stage * 2u * OPERAND_BYTES + OPERAND_BYTES);
        wgmma_fence();
        multiply_channels<STEPS>(scores, q_tile, k_tile);
        multiply_channels<STEPS>(grads, grad_tile, v_tile);
        wgmma_commit();
        wgmma_wait();
        wgmma_written(scores);
        wgmma_written(grads);
        if (lane == 0u) barrier_arrive(empty);
        // A block's warps w, w + 4, ... share a scheduler, so each scheduler runs one of these four.
        if (quarter == 0u) visit<0>(upper, lower, scores, grads, place, key_tile);
        else if (quarter == 1u) visit<1>(upper, lower, scores, grads, place, key_tile);
        else if (quarter == 2u) visit<2>(upper, lower, scores, grads, place, key_tile);
        else visit<3>(upper, lower, scores, grads, place, key_tile);
    }
    // Windows that hide nothing.
    if (busy) emit(upper, lower, place.dot, place.live, lane, place.bins + 4u * tile);
}

// Adds a launch's partial bins to the curves, in a fixed order. A block has 32 bins x 8 strides.
extern "C" __global__ void __launch_bounds__(256) influence_reduce(
    const float4* __restrict__ partials, double* __restrict__ curves,
    u32 bins, u32 group, u32 sink_tiles, u32 first_kv_head, u32 first_slot, u32 end_slot) {
    __shared__ double sums[8][32][3];
    u32 x = threadIdx.x % 32u, stride = threadIdx.x / 32u;
    u32 bin = blockIdx.x * 32u + x;
    double identity = 0.0, absolute = 0.0, square = 0.0;
    if (bin < bins) {
        for (u32 slot = first_slot + stride; slot < end_slot; slot += 8u) {
            u32 tile = slot / group;
            u32 at = tile < sink_tiles || bin >= tile ? tile : max(bin, sink_tiles > 0u ? sink_tiles - 1u : 0u);
            const float4* from = partials + partial_offset(blockIdx.y, slot, first_slot, end_slot, group) + at;
#pragma unroll
            for (u32 warp = 0; warp < 4u; ++warp) {
                float4 part = from[(u64)warp * (tile + 1u)];
                identity += part.x;
                absolute += part.y;
                square += part.z;
            }
        }
    }
    sums[stride][x][0] = identity;
    sums[stride][x][1] = absolute;
    sums[stride][x][2] = square;
    __syncthreads();
    if (stride < 3u && bin < bins) {
        double sum = 0.0;
        for (u32 i = 0; i < 8u; ++i) sum += sums[i][x][stride];
        curves[((u64)(first_kv_head + blockIdx.y) * 3u + stride) * bins + bin] += sum;
    }
}
