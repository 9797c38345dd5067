// What every window costs: the joint influence curves of a layer, in one pass over the causal half.
//
// q, grad_out: [heads, len, HEAD_DIM]   k, v: [kv_heads, len, HEAD_DIM], all 16-bit, through tensor maps
// means: [kv_heads of this launch][slot][bin][row of the tile] f32, see bins_before
// row_dot: [heads, rows] f32, D; rows = len rounded up to a multiple of 64   own_bins: [kv_heads]
// curves: [kv_heads][3][bins] f64 (identity, absolute value, square), added to by influence_reduce
//
// A row i keeps K = the sink keys and its `window` most recent ones; its effect is the mean G_K / m_K less D, with
// m_K = sum of A_ij, G_K = sum of A_ij g_ij over K and g = grad_out v^T. D is the mean over what the row sees now: where that is what some bin
// keeps, the walk has it already (influence_dots), and no other pass is needed before this one. Bin s stands for the span 64 (s + 1), that is
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
// query's own key comes first. 1 - m is never formed. Means and effects are f32, sums over rows f64 in a fixed order: the same input gives
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

// Joins the four threads of each row and writes the means of its 16 rows.
__device__ __forceinline__ void emit(const Kept& upper, const Kept& lower, u32 lane, float* out) {
    bool odd = lane & 1u;
    float top = exchange_max(odd, upper.shift, lower.shift, 1);
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
    float other = __shfl_xor_sync(~0u, top, 1);
    float factor_upper = exp2_fast(upper.shift - (odd ? other : top));
    float factor_lower = exp2_fast(lower.shift - (odd ? top : other));
    float mass = exchange_sum(odd, upper.mass * factor_upper, lower.mass * factor_lower, 1);
    float grad = exchange_sum(odd, upper.grad * factor_upper, lower.grad * factor_lower, 1);
    mass += __shfl_xor_sync(~0u, mass, 2);
    grad += __shfl_xor_sync(~0u, grad, 2);
    // Even lanes stand for the upper half, odd ones for the lower.
    if ((lane & 2u) == 0u) out[(lane & 1u) * 8u + lane / 4u] = __fdividef(grad, mass);
}

// What a warp of the walk knows of its place.
struct Place {
    float scale;        // log2(e) * softmax_scale
    u32 lane;
    float* means;       // this warp's rows in the slot's first bin
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
        if (bin > 0u) emit(upper, lower, place.lane, place.means + TILE_ROWS * (bin - 1u));
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
    float* __restrict__ means, u32 group, u32 sink_tiles, u32 first_kv_head, u32 first_slot, u32 end_slot, float scale) {
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
    place.means = means;
    if (busy) {
        place.means += TILE_ROWS * bins_before(kv_index, slot, first_slot, end_slot, group) + quarter * 16u;
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
    if (busy) emit(upper, lower, lane, place.means + TILE_ROWS * tile);
}

// The bin of row tile `tile` that stands for span number `bin`: what is wider than the text hides nothing.
__device__ __forceinline__ u32 bin_of(u32 bin, u32 tile, u32 sink_tiles) {
    return tile < sink_tiles || bin >= tile ? tile : max(bin, sink_tiles > 0u ? sink_tiles - 1u : 0u);
}

// D of a launch's rows: their means under spans number own_bins[kv_head]. Rows that do not exist get 0. grid (slots, kv_heads of the
// launch), 64 threads.
extern "C" __global__ void __launch_bounds__(64) influence_dots(
    const float* __restrict__ means, const u32* __restrict__ own_bins, float* __restrict__ row_dot,
    u32 len, u32 group, u32 sink_tiles, u32 first_kv_head, u32 first_slot, u32 end_slot) {
    u32 slot = first_slot + blockIdx.x, tile = slot / group, kv_head = first_kv_head + blockIdx.y;
    u32 row = tile * TILE_ROWS + threadIdx.x, head = kv_head * group + slot % group;
    u32 bin = bin_of(own_bins[kv_head], tile, sink_tiles);
    float mean = means[TILE_ROWS * bins_before(blockIdx.y, slot, first_slot, end_slot, group) + bin * TILE_ROWS + threadIdx.x];
    row_dot[(u64)head * ((len + 63u) & ~63u) + row] = row < len ? mean : 0.0f;
}

// Adds phi of a launch's effects to the curves, in a fixed order. A block has one bin of one KV head, each of its 8 warps every eighth slot,
// a lane two rows. grid (bins, kv_heads of the launch), 256 threads.
extern "C" __global__ void __launch_bounds__(256) influence_reduce(
    const float* __restrict__ means, const float* __restrict__ row_dot, double* __restrict__ curves,
    u32 len, u32 group, u32 sink_tiles, u32 first_kv_head, u32 first_slot, u32 end_slot) {
    __shared__ double sums[8][3];
    u32 warp = threadIdx.x / 32u, lane = threadIdx.x % 32u, bin = blockIdx.x, kv_head = first_kv_head + blockIdx.y;
    double all[3] = {0.0, 0.0, 0.0};
#pragma unroll 4
    for (u32 slot = first_slot + warp; slot < end_slot; slot += 8u) {
        u32 tile = slot / group, row = tile * TILE_ROWS + 2u * lane, head = kv_head * group + slot % group;
        u64 at = TILE_ROWS * bins_before(blockIdx.y, slot, first_slot, end_slot, group) + bin_of(bin, tile, sink_tiles) * TILE_ROWS + 2u * lane;
        float2 mean = *(const float2*)(means + at);
        float2 dot = *(const float2*)(row_dot + (u64)head * ((len + 63u) & ~63u) + row);
        float a = row < len ? mean.x - dot.x : 0.0f, b = row + 1u < len ? mean.y - dot.y : 0.0f;
        all[0] += a + b;
        all[1] += fabsf(a) + fabsf(b);
        all[2] += a * a + b * b;
    }
#pragma unroll
    for (u32 phi = 0; phi < 3u; ++phi) {
        for (u32 mask = 16; mask > 0; mask /= 2) all[phi] += __shfl_xor_sync(~0u, all[phi], mask);
        if (lane == 0u) sums[warp][phi] = all[phi];
    }
    __syncthreads();
    if (threadIdx.x < 3u) {
        double sum = 0.0;
        for (u32 i = 0; i < 8u; ++i) sum += sums[i][threadIdx.x];
        curves[((u64)kv_head * 3u + threadIdx.x) * gridDim.x + bin] += sum;
    }
}
