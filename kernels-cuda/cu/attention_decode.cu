// Attention of one query a request over each KV head's sink slots and ring, split over a static work list; and the join of the parts.
//
// q, out: [batch, heads, HEAD_DIM] 16-bit   k, v: slots [slot, HEAD_DIM] 16-bit
// spans: [batch, kv_heads] HeadSpan, slot_offset counted from the buffers' begin
// lens: [batch] tokens written, the query's own among them, at least 1
// requests: [items] whose item it is   items: [items] DecodeItem (first_head within the request; at most 8 heads)
// partials: [items, 8] rows of HEAD_DIM values, row_max (times log2 e), row_sum
// heads_parts: [batch, heads] HeadParts: first and stride count rows of `partials`
//
// A part is an even share of the keys that are visible now: the sink's, then the window's; no other slot is read. A warp takes 16 keys at a
// time into the operands of m16n8k16 products (rows 8 to 15 of the queries' side are empty): sums over
// channels may run in any order, so a lane's 16 bytes of K are the operand as they are, with q permuted alike; of V a lane
// holds 8 channels of 4 keys and pairs up keys. Numerics: f32 scores and sums, running maximum, probabilities rounded to 16 bits.
// Twin: reference/src/attention_decode.rs.

typedef unsigned int u32;
typedef unsigned long long u64;

#define WARPS 4u
#define CHUNKS (HEAD_DIM / 32u)     // K: 32 channels, 8 a lane of a quad
#define PANELS (HEAD_DIM / 64u)     // V: 64 channels, 8 a lane group
#define ROW_WORDS (HEAD_DIM / 8u)   // uint4 a slot
#define PARTIAL (HEAD_DIM + 2u)
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

extern "C" __global__ void __launch_bounds__(WARPS * 32) attention_decode(
    const uint4* __restrict__ q, const uint4* __restrict__ k, const uint4* __restrict__ v, const HeadSpan* __restrict__ spans,
    const u32* __restrict__ lens, const u32* __restrict__ requests, const DecodeItem* __restrict__ items, float* __restrict__ partials,
    u32 heads, u32 kv_heads, u32 group, float scale) {
    // By warp and stage; afterwards the warps' results.
    extern __shared__ uint4 stages[];
    float(*joined)[8][PARTIAL] = (float(*)[8][PARTIAL])stages;
    DecodeItem item = items[blockIdx.x];
    u32 request = requests[blockIdx.x];
    HeadSpan span = spans[request * kv_heads + item.kv_head];
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
        if (eighth < rows) query[c] = q[(u64)(request * heads + item.first_head + eighth) * ROW_WORDS + c * 4u + quad];
    }

    float shift = NO_MAX, sum = 0.0f;
    float out[PANELS][8][4];
#pragma unroll
    for (u32 i = 0; i < PANELS; ++i)
#pragma unroll
        for (u32 j = 0; j < 8u; ++j)
#pragma unroll
            for (u32 e = 0; e < 4u; ++e) out[i][j][e] = 0.0f;

    // A stage of a warp: 16 slots of K, 16 of V. 16-byte pieces are swizzled so that the reads below meet no bank twice.
    constexpr u32 STAGE = 32u * ROW_WORDS, SLOTS_AT_ONCE = 32u / ROW_WORDS;
    u32 warp_at = warp * DECODE_STAGES * STAGE;
    u32 base_at = (u32)__cvta_generic_to_shared(stages) + warp_at * 16u;
    auto k_piece = [](u32 row, u32 piece) { return row * ROW_WORDS + (piece ^ ((row & 1u) << 2)); };
    auto v_piece = [](u32 row, u32 piece) { return (16u + row) * ROW_WORDS + (piece ^ (row & 6u)); };
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
        uint4 keys[2][CHUNKS], values[4][PANELS];
#pragma unroll
        for (u32 j = 0; j < 2u; ++j)
#pragma unroll
            for (u32 c = 0; c < CHUNKS; ++c) keys[j][c] = own[k_piece(8u * j + eighth, 4u * c + quad)];
        // Keys 2t, 2t + 1, 2t + 8, 2t + 9.
#pragma unroll
        for (u32 j = 0; j < 4u; ++j)
#pragma unroll
            for (u32 i = 0; i < PANELS; ++i) values[j][i] = own[v_piece(2u * quad + j % 2u + j / 2u * 8u, 8u * i + eighth)];
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
            }
        u32 p0 = pack(scores[0][0], scores[0][1]), p2 = pack(scores[1][0], scores[1][1]);
#pragma unroll
        for (u32 i = 0; i < PANELS; ++i) {
            const u32* a = &values[0][i].x;
            const u32* b = &values[1][i].x;
            const u32* c = &values[2][i].x;
            const u32* d = &values[3][i].x;
#pragma unroll
            for (u32 word = 0; word < 4u; ++word)
#pragma unroll
                for (u32 half = 0; half < 2u; ++half) {
                    u32 choose = half == 0u ? 0x5410u : 0x7632u;
                    float(&to)[4] = out[i][2u * word + half];
                    to[0] *= old;
                    to[1] *= old;
                    multiply(to, p0, p2, __byte_perm(a[word], b[word], choose), __byte_perm(c[word], d[word], choose));
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
            for (u32 e = 0; e < 2u; ++e) mine[64u * i + 8u * (2u * quad + e) + j] = out[i][j][e];
    if (quad == 0u) {
        mine[HEAD_DIM] = shift;
        mine[HEAD_DIM + 1u] = sum;
    }
    __syncthreads();
    for (u32 row = warp; row < rows; row += WARPS) {
        float top = NO_MAX, all = 0.0f, factors[WARPS];
        for (u32 w = 0; w < WARPS; ++w) top = fmaxf(top, joined[w][row][HEAD_DIM]);
#pragma unroll
        for (u32 w = 0; w < WARPS; ++w) {
            factors[w] = exp2_fast(joined[w][row][HEAD_DIM] - top);
            all += factors[w] * joined[w][row][HEAD_DIM + 1u];
        }
        float* to = partials + ((u64)blockIdx.x * 8u + row) * PARTIAL;
        for (u32 channel = lane; channel < HEAD_DIM; channel += 32u) {
            float value = 0.0f;
#pragma unroll
            for (u32 w = 0; w < WARPS; ++w) value += factors[w] * joined[w][row][channel];
            to[channel] = value;
        }
        if (lane == 0u) {
            to[HEAD_DIM] = top;
            to[HEAD_DIM + 1u] = all;
        }
    }
}

// Joins the parts of each query head in a fixed order: a block a head, each warp every fourth part.
extern "C" __global__ void __launch_bounds__(128) attention_decode_join(
    const float* __restrict__ partials, const HeadParts* __restrict__ heads_parts, u32* __restrict__ out) {
    __shared__ float joined[WARPS][PARTIAL];
    u32 warp = threadIdx.x / 32u, lane = threadIdx.x % 32u;
    HeadParts parts = heads_parts[blockIdx.x];
    float top = NO_MAX;
    for (u32 i = threadIdx.x % 32u; i < parts.parts; i += 32u) top = fmaxf(top, partials[(u64)(parts.first + i * parts.stride) * PARTIAL + HEAD_DIM]);
    for (u32 mask = 16; mask > 0; mask /= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, mask));
    float sum = 0.0f, values[HEAD_DIM / 32u];
#pragma unroll
    for (u32 c = 0; c < HEAD_DIM / 32u; ++c) values[c] = 0.0f;
#pragma unroll 4
    for (u32 i = warp; i < parts.parts; i += WARPS) {
        const float* from = partials + (u64)(parts.first + i * parts.stride) * PARTIAL;
        float factor = exp2_fast(from[HEAD_DIM] - top);
        sum += factor * from[HEAD_DIM + 1u];
#pragma unroll
        for (u32 c = 0; c < HEAD_DIM / 32u; ++c) values[c] += factor * from[32u * c + lane];
    }
#pragma unroll
    for (u32 c = 0; c < HEAD_DIM / 32u; ++c) joined[warp][32u * c + lane] = values[c];
    if (lane == 0u) joined[warp][HEAD_DIM] = sum;
    __syncthreads();
    if (threadIdx.x >= HEAD_DIM / 2u) return;
    float all = 0.0f, low = 0.0f, high = 0.0f;
#pragma unroll
    for (u32 w = 0; w < WARPS; ++w) {
        all += joined[w][HEAD_DIM];
        low += joined[w][2u * threadIdx.x];
        high += joined[w][2u * threadIdx.x + 1u];
    }
    out[(u64)blockIdx.x * (HEAD_DIM / 2u) + threadIdx.x] = pack(low / all, high / all);
}
