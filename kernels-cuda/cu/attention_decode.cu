// Attention of one query a request over each KV head's sink slots and ring, split over a static work list; one launch.
//
// q, out: [batch, heads, HEAD_DIM] 16-bit   k, v: slots [slot, HEAD_DIM], 16-bit or (KV_INT8) signed bytes
// scales: [slot] of (k, v), KV_INT8 alone: a row's values are its bytes times its scale
// spans: [batch, kv_heads] HeadSpan, slot_offset counted from the buffers' begin
// lens: [batch] tokens written, the query's own among them; a request of 0 gets zeros and costs nothing
// requests: [items] whose item it is   items: [items] DecodeItem (first_head within the request; at most 8 heads), the parts of a
// run of heads one after another   partials: [items, 8, HEAD_DIM]   stats: [items, 8] of row_max (times log2 e) and row_sum
// arrivals: [items] zeros, and zeros again afterwards
//
// The launch may begin while the kernel before it ends, see launch_early.
//
// A part is an even share of the keys that are visible now: the sink's, then the window's; no other slot is read. Lengths are read
// on the device, so a captured launch serves every step. A warp takes 16 keys at a
// time into the operands of m16n8k16 products (rows 8 to 15 of the queries' side are empty): sums over
// channels may run in any order, so a lane's 8 channels of K are the operand as they are, with q permuted alike; of V a lane
// holds 8 channels of 4 keys and pairs up keys. The block that finishes the last part of a run joins its parts, in their order.
// Numerics: f32 scores and sums, running maximum, probabilities rounded to 16 bits. Bytes become 16-bit values exactly; a key's
// scales enter its scores and its probabilities. Twin: reference/src/attention_decode.rs.

typedef unsigned int u32;
typedef unsigned long long u64;

#define WARPS 4u
#if KV_INT8
#define BOUNDS WARPS * 32, DECODE_BLOCKS
#else
#define BOUNDS WARPS * 32
#endif
#define CHUNKS (HEAD_DIM / 32u)     // K: 32 channels, 8 a lane of a quad
#define PANELS (HEAD_DIM / 64u)     // V: 64 channels, 8 a lane group
#define Q_WORDS (HEAD_DIM / 8u)     // uint4 a query
#if KV_INT8
#define ROW_WORDS (HEAD_DIM / 16u)  // uint4 a slot
#define SCALE_WORDS 8u              // uint4 for the scales of 16 slots
#else
#define ROW_WORDS (HEAD_DIM / 8u)
#define SCALE_WORDS 0u
#endif
#define PARTIAL (HEAD_DIM + 2u)     // a warp's result of a row in shared memory
#define LANE_CHANNELS (HEAD_DIM / 32u)
#define NO_MAX -1e30f

__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// A warp's own way through shared memory: whole slots, 512 bytes an instruction.
__device__ __forceinline__ void fetch(u32 to, const uint4* from) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" :: "r"(to), "l"(from) : "memory");
}
__device__ __forceinline__ void fetch_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int PENDING>
__device__ __forceinline__ void fetch_wait() { asm volatile("cp.async.wait_group %0;" :: "n"(PENDING) : "memory"); }

#if ELEMENT_BF16
#define MMA_TYPES "bf16.bf16"
#define PACK "cvt.rn.bf16x2.f32"
#else
#define MMA_TYPES "f16.f16"
#define PACK "cvt.rn.f16x2.f32"
#endif

// d += a b with rows 8 to 15 of a empty.
__device__ __forceinline__ void multiply(float (&d)[4], u32 a0, u32 a2, u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32." MMA_TYPES ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %5}, {%7, %8}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a0), "r"(0u), "r"(a2), "r"(b0), "r"(b1));
}

__device__ __forceinline__ u32 pack(float low, float high) {
    u32 both;
    asm(PACK " %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}

#if KV_INT8
// Bytes i of `a` and j of `b`, signed, as a pair of 16-bit values: exact. A number whose unit in the last place is 1 takes a byte's lower seven bits
// as they are; less the same number with the sign bit, worth 128.
__device__ __forceinline__ u32 widen(u32 a, u32 i, u32 b, u32 j) {
    u32 both = __byte_perm(a, b, i | (4u + j) << 8), value;
#if ELEMENT_BF16
    asm("sub.rn.bf16x2 %0, %1, %2;" : "=r"(value) : "r"(both & 0x007F007Fu | 0x43004300u), "r"(both & 0x00800080u | 0x43004300u));
#else
    asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(value) : "r"(both & 0x007F007Fu | 0x64006400u), "r"(both & 0x00800080u | 0x64006400u));
#endif
    return value;
}
__device__ __forceinline__ void fetch_scales(u32 to, const float2* from) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" :: "r"(to), "l"(from) : "memory");
}

// Rows of bytes are read 8 bytes a lane: 4 rows and 32 bytes of each at a time, which must meet every bank once.
__device__ __forceinline__ u32 swizzled(u32 row, u32 piece) {
    return row * ROW_WORDS + (piece ^ (ROW_WORDS == 8u ? (row & 3u) << 1 : row & 2u));
}
__device__ __forceinline__ u32 k_piece(u32 row, u32 piece) { return swizzled(row, piece); }
// A lane reads every second row of V.
__device__ __forceinline__ u32 v_piece(u32 row, u32 piece) {
    return 16u * ROW_WORDS + swizzled((row & 8u) | (row & 1u) << 2 | (row & 6u) >> 1, piece);
}
__device__ __forceinline__ uint2 half_piece(const uint4* piece, u32 half) { return ((const uint2*)piece)[half]; }
#else
// 16-byte pieces are swizzled so that reads meet no bank twice.
__device__ __forceinline__ u32 k_piece(u32 row, u32 piece) { return row * ROW_WORDS + (piece ^ ((row & 1u) << 2)); }
__device__ __forceinline__ u32 v_piece(u32 row, u32 piece) { return (16u + row) * ROW_WORDS + (piece ^ (row & 6u)); }
#endif

#if HEAD_DIM == 128u
typedef float4 Share;
#else
typedef float2 Share;
#endif
#define AT_ONCE 8u

// Counts this block's arrival: what its threads wrote before is seen by who counts later, and what others wrote before by it.
__device__ __forceinline__ u32 arrive(u32* arrivals) {
    u32 before;
    asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;" : "=r"(before) : "l"(arrivals) : "memory");
    return before;
}

// Joins the parts of `rows` query heads in their order. `split` warps share a row, each with every split-th part.
__device__ __forceinline__ void join(const float* partials, const float2* stats, u32 first_item, u32 parts, u32 rows,
                                     float (&sums)[WARPS][PARTIAL], u32* out) {
    u32 warp = threadIdx.x / 32u, lane = threadIdx.x % 32u;
    u32 split = rows >= 4u ? 1u : rows >= 2u ? 2u : 4u;
    u32 piece = warp % split;
    for (u32 row0 = 0; row0 < rows; row0 += WARPS / split) {
        u32 row = row0 + warp / split;
        float top = NO_MAX, sum = 0.0f, values[LANE_CHANNELS];
#pragma unroll
        for (u32 c = 0; c < LANE_CHANNELS; ++c) values[c] = 0.0f;
        for (u32 base = 0; row < rows && base < parts; base += 32u) {
            u32 count = min(parts - base, 32u);
            u64 at = (u64)(first_item + base) * 8u + row;
            float2 own = lane < count ? __ldcg(stats + at + lane * 8u) : make_float2(NO_MAX, 0.0f);
            float next = fmaxf(top, own.x);
            for (u32 mask = 16; mask > 0; mask /= 2) next = fmaxf(next, __shfl_xor_sync(~0u, next, mask));
            float old = exp2_fast(top - next), factor = exp2_fast(own.x - next);
            top = next;
            sum = sum * old + factor * own.y;
#pragma unroll
            for (u32 c = 0; c < LANE_CHANNELS; ++c) values[c] *= old;
            // All loads of a batch are on their way before the first is used.
            for (u32 i = piece; i < count; i += AT_ONCE * split) {
                Share shares[AT_ONCE];
#pragma unroll
                for (u32 j = 0; j < AT_ONCE; ++j) {
                    u32 part = min(i + j * split, count - 1u);
                    shares[j] = __ldcg((const Share*)(partials + (at + part * 8u) * HEAD_DIM) + lane);
                }
#pragma unroll
                for (u32 j = 0; j < AT_ONCE; ++j) {
                    float by = __shfl_sync(~0u, factor, (i + j * split) % 32u);
                    by = i + j * split < count ? by : 0.0f;
                    const float* share = &shares[j].x;
#pragma unroll
                    for (u32 c = 0; c < LANE_CHANNELS; ++c) values[c] += by * share[c];
                }
            }
        }
        for (u32 mask = 16; mask > 0; mask /= 2) sum += __shfl_xor_sync(~0u, sum, mask);
        float inverse = sum > 0.0f ? 1.0f / sum : 0.0f;
        if (split > 1u) {
#pragma unroll
            for (u32 c = 0; c < LANE_CHANNELS; ++c) sums[warp][lane * LANE_CHANNELS + c] = values[c];
            __syncthreads();
            for (u32 other = 1; other < split && piece == 0u; ++other)
#pragma unroll
                for (u32 c = 0; c < LANE_CHANNELS; ++c) values[c] += sums[warp + other][lane * LANE_CHANNELS + c];
            __syncthreads();
        }
        if (piece == 0u && row < rows)
#pragma unroll
            for (u32 c = 0; c < LANE_CHANNELS; c += 2u)
                out[(row * HEAD_DIM + lane * LANE_CHANNELS + c) / 2u] = pack(values[c] * inverse, values[c + 1u] * inverse);
    }
}

extern "C" __global__ void __launch_bounds__(BOUNDS) attention_decode(
    const uint4* __restrict__ q, const uint4* __restrict__ k, const uint4* __restrict__ v, const float2* __restrict__ scales,
    const HeadSpan* __restrict__ spans, const u32* __restrict__ lens, const u32* __restrict__ requests,
    const DecodeItem* __restrict__ items, float* partials, float2* stats, u32* arrivals, u32* __restrict__ out,
    u32 heads, u32 kv_heads, u32 group, float scale) {
    // By warp and stage; afterwards the warps' results, and behind them a flag. Nothing else is shared: stages begin at a multiple of
    // 128 bytes, so that no arriving sector is cut.
    extern __shared__ __align__(128) uint4 stages[];
    float(*joined)[8][PARTIAL] = (float(*)[8][PARTIAL])stages;
    u32* is_last = (u32*)(joined + WARPS);
    DecodeItem item = items[blockIdx.x];
    u32 request = requests[blockIdx.x];
    HeadSpan span = spans[request * kv_heads + item.kv_head];
    // Up to here nothing was read that another kernel writes.
    asm volatile("griddepcontrol.launch_dependents;\ngriddepcontrol.wait;" ::: "memory");
    u32 len = lens[request];
    u32 warp = threadIdx.x / 32u, lane = threadIdx.x % 32u;
    u32 eighth = lane / 4u, quad = lane % 4u;

    // Visible keys in order: the sink's, then the window's, whose first sits `turn` slots into the ring.
    u32 sink_end = min(span.sink, len);
    u32 local_start = max(len > span.window ? len - span.window : 0u, span.sink);
    u32 visible = sink_end + (max(len, local_start) - local_start);
    u32 turn = span.ring > 0u ? (local_start - span.sink) % span.ring : 0u;
    u32 share = (visible + item.parts - 1u) / item.parts;
    u32 first = min(item.part * share, visible), end = min(first + share, visible);
    auto slot = [&](u32 nth) {
        nth = min(nth, end - 1u);
        u32 at = turn + (nth - sink_end);
        at = at >= span.ring ? at - span.ring : at;
        return (u64)(span.slot_offset + (nth < sink_end ? nth : span.sink + at));
    };

    // Row l/4 of the queries: 8 channels of each 32, as the lane holds them of K. Heads beyond the group's are empty.
    uint4 query[CHUNKS];
    u32 rows = min(group - item.first_head % group, 8u);
#pragma unroll
    for (u32 c = 0; c < CHUNKS; ++c) {
        query[c] = make_uint4(0u, 0u, 0u, 0u);
        if (eighth < rows) query[c] = q[(u64)(request * heads + item.first_head + eighth) * Q_WORDS + c * 4u + quad];
    }

    float shift = NO_MAX, sum = 0.0f;
    float out_sums[PANELS][8][4];
#pragma unroll
    for (u32 i = 0; i < PANELS; ++i)
#pragma unroll
        for (u32 j = 0; j < 8u; ++j)
#pragma unroll
            for (u32 e = 0; e < 4u; ++e) out_sums[i][j][e] = 0.0f;

    // A stage of a warp: 16 slots of K, 16 of V, their scales.
    constexpr u32 STAGE = 32u * ROW_WORDS + SCALE_WORDS, SLOTS_AT_ONCE = 32u / ROW_WORDS;
    u32 warp_at = warp * DECODE_STAGES * STAGE;
    u32 base_at = (u32)__cvta_generic_to_shared(stages) + warp_at * 16u;
    auto fetch_keys = [&](u32 at, u32 stage) {
        if (at < end) {
            u32 to = base_at + stage * STAGE * 16u, piece = lane % ROW_WORDS;
#pragma unroll
            for (u32 i = 0; i < 16u / SLOTS_AT_ONCE; ++i) {
                u32 row = i * SLOTS_AT_ONCE + lane / ROW_WORDS;
                u64 from = slot(at + row) * ROW_WORDS + piece;
                fetch(to + k_piece(row, piece) * 16u, k + from);
                fetch(to + v_piece(row, piece) * 16u, v + from);
            }
#if KV_INT8
            if (lane < 16u) fetch_scales(to + 32u * ROW_WORDS * 16u + lane * 8u, scales + slot(at + lane));
#endif
        }
        fetch_commit();
    };
    u32 stage = 0;
#pragma unroll
    for (u32 ahead = 0; ahead < DECODE_STAGES - 1u; ++ahead) fetch_keys(first + warp * 16u + ahead * WARPS * 16u, ahead);

    for (u32 at = first + warp * 16u; at < end; at += WARPS * 16u) {
        __syncwarp();
        fetch_keys(at + (DECODE_STAGES - 1u) * WARPS * 16u, stage == 0u ? DECODE_STAGES - 1u : stage - 1u);
        fetch_wait<DECODE_STAGES - 1>();
        __syncwarp();
        const uint4* own = stages + warp_at + stage * STAGE;
        stage = stage + 1u == DECODE_STAGES ? 0u : stage + 1u;
#if KV_INT8
        const float2* own_scales = (const float2*)(own + 32u * ROW_WORDS);
        float2 by[2][2];
#pragma unroll
        for (u32 j = 0; j < 2u; ++j)
#pragma unroll
            for (u32 e = 0; e < 2u; ++e) by[j][e] = own_scales[8u * j + 2u * quad + e];
        uint2 values[4][PANELS];
#else
        uint4 values[4][PANELS];
#endif
        uint4 keys[2][CHUNKS];
#pragma unroll
        for (u32 j = 0; j < 2u; ++j)
#pragma unroll
            for (u32 c = 0; c < CHUNKS; ++c) {
#if KV_INT8
                uint2 bytes = half_piece(own + k_piece(8u * j + eighth, 2u * c + quad / 2u), quad & 1u);
                u32 a = bytes.x, b = bytes.y;
                keys[j][c] = make_uint4(widen(a, 0u, a, 1u), widen(a, 2u, a, 3u), widen(b, 0u, b, 1u), widen(b, 2u, b, 3u));
#else
                keys[j][c] = own[k_piece(8u * j + eighth, 4u * c + quad)];
#endif
            }
        // Keys 2t, 2t + 1, 2t + 8, 2t + 9.
#pragma unroll
        for (u32 j = 0; j < 4u; ++j)
#pragma unroll
            for (u32 i = 0; i < PANELS; ++i) {
                u32 row = 2u * quad + j % 2u + j / 2u * 8u;
#if KV_INT8
                values[j][i] = half_piece(own + v_piece(row, 4u * i + eighth / 2u), eighth & 1u);
#else
                values[j][i] = own[v_piece(row, 8u * i + eighth)];
#endif
            }
        float scores[2][4];
#pragma unroll
        for (u32 j = 0; j < 2u; ++j) {
#pragma unroll
            for (u32 e = 0; e < 4u; ++e) scores[j][e] = 0.0f;
#pragma unroll
            for (u32 c = 0; c < CHUNKS; ++c) {
                multiply(scores[j], query[c].x, query[c].y, keys[j][c].x, keys[j][c].y);
                multiply(scores[j], query[c].z, query[c].w, keys[j][c].z, keys[j][c].w);
            }
        }
        float top = NO_MAX;
#pragma unroll
        for (u32 j = 0; j < 2u; ++j)
#pragma unroll
            for (u32 e = 0; e < 2u; ++e) {
                bool there = at + 8u * j + 2u * quad + e < end;
#if KV_INT8
                scores[j][e] *= by[j][e].x;
#endif
                scores[j][e] = there ? scores[j][e] * scale : -__int_as_float(0x7F800000);
                top = fmaxf(top, scores[j][e]);
            }
        top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
        top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
        float next = fmaxf(shift, top);
        float old = exp2_fast(shift - next);
        shift = next;
        sum *= old;
#pragma unroll
        for (u32 j = 0; j < 2u; ++j)
#pragma unroll
            for (u32 e = 0; e < 2u; ++e) {
                scores[j][e] = exp2_fast(scores[j][e] - shift);
                sum += scores[j][e];
#if KV_INT8
                scores[j][e] *= by[j][e].y;
#endif
            }
        u32 p0 = pack(scores[0][0], scores[0][1]), p2 = pack(scores[1][0], scores[1][1]);
#pragma unroll
        for (u32 i = 0; i < PANELS; ++i) {
            const u32* a = &values[0][i].x;
            const u32* b = &values[1][i].x;
            const u32* c = &values[2][i].x;
            const u32* d = &values[3][i].x;
#pragma unroll
            for (u32 channel = 0; channel < 8u; ++channel) {
                float(&to)[4] = out_sums[i][channel];
                to[0] *= old;
                to[1] *= old;
#if KV_INT8
                u32 word = channel / 4u, byte = channel % 4u;
                multiply(to, p0, p2, widen(a[word], byte, b[word], byte), widen(c[word], byte, d[word], byte));
#else
                u32 word = channel / 2u, choose = channel % 2u == 0u ? 0x5410u : 0x7632u;
                multiply(to, p0, p2, __byte_perm(a[word], b[word], choose), __byte_perm(c[word], d[word], choose));
#endif
            }
        }
    }
    sum += __shfl_xor_sync(~0u, sum, 1);
    sum += __shfl_xor_sync(~0u, sum, 2);

    fetch_wait<0>();
    __syncthreads();
    // Column 2t + e of product i is channel 8 (2t + e) + i of its panel.
    float* mine = joined[warp][eighth];
#pragma unroll
    for (u32 i = 0; i < PANELS; ++i)
#pragma unroll
        for (u32 j = 0; j < 8u; ++j)
#pragma unroll
            for (u32 e = 0; e < 2u; ++e) mine[64u * i + 8u * (2u * quad + e) + j] = out_sums[i][j][e];
    if (quad == 0u) {
        mine[HEAD_DIM] = shift;
        mine[HEAD_DIM + 1u] = sum;
    }
    __syncthreads();
    u32* to_out = out + (u64)(request * heads + item.first_head) * (HEAD_DIM / 2u);
    for (u32 row = warp; row < rows; row += WARPS) {
        float top = NO_MAX, all = 0.0f, factors[WARPS], values[LANE_CHANNELS];
        for (u32 w = 0; w < WARPS; ++w) top = fmaxf(top, joined[w][row][HEAD_DIM]);
#pragma unroll
        for (u32 w = 0; w < WARPS; ++w) {
            factors[w] = exp2_fast(joined[w][row][HEAD_DIM] - top);
            all += factors[w] * joined[w][row][HEAD_DIM + 1u];
        }
#pragma unroll
        for (u32 c = 0; c < LANE_CHANNELS; ++c) {
            values[c] = 0.0f;
#pragma unroll
            for (u32 w = 0; w < WARPS; ++w) values[c] += factors[w] * joined[w][row][lane * LANE_CHANNELS + c];
        }
        if (item.parts == 1u) {
            float inverse = all > 0.0f ? 1.0f / all : 0.0f;
#pragma unroll
            for (u32 c = 0; c < LANE_CHANNELS; c += 2u)
                to_out[(row * HEAD_DIM + lane * LANE_CHANNELS + c) / 2u] = pack(values[c] * inverse, values[c + 1u] * inverse);
            continue;
        }
        u64 at = (u64)blockIdx.x * 8u + row;
#pragma unroll
        for (u32 c = 0; c < LANE_CHANNELS; c += 2u)
            *(float2*)(partials + at * HEAD_DIM + lane * LANE_CHANNELS + c) = make_float2(values[c], values[c + 1u]);
        if (lane == 0u) stats[at] = make_float2(top, all);
    }
    if (item.parts == 1u) return;

    u32 first_item = blockIdx.x - item.part;
    __syncthreads();
    if (threadIdx.x == 0u) *is_last = arrive(arrivals + first_item) == item.parts - 1u;
    __syncthreads();
    if (*is_last == 0u) return;
    join(partials, stats, first_item, item.parts, rows, *(float(*)[WARPS][PARTIAL])stages, to_out);
    if (threadIdx.x == 0u) arrivals[first_item] = 0u;
}
