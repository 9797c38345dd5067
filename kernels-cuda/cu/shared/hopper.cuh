// Hopper's building blocks: barriers in shared memory, the bulk tensor copy engine, warpgroup matrix products.
//
// Every tile here is 64 rows by 64 channels of 16-bit values: 8 KiB, 128 bytes a row, swizzled by 128 bytes as the
// copy engine writes it and as wgmma reads it. Tiles lie at multiples of 1024 bytes. Channels that a head does not
// have are written as zeros by the copy engine, rows past the end too.

typedef unsigned int u32;
typedef unsigned long long u64;

#define INFINITY __int_as_float(0x7F800000)
#define TILE_ROWS 64u
#define TILE_BYTES 8192u

/// What the driver's cuTensorMapEncodeTiled fills; opaque here.
struct alignas(64) TensorMap { u64 opaque[16]; };

__device__ __forceinline__ u32 smem_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

__device__ __forceinline__ void barrier_init(u32 barrier, u32 arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" :: "r"(barrier), "r"(arrivals) : "memory");
}

__device__ __forceinline__ void barrier_expect(u32 barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" :: "r"(barrier), "r"(bytes) : "memory");
}

__device__ __forceinline__ void barrier_arrive(u32 barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" :: "r"(barrier) : "memory");
}

__device__ __forceinline__ void barrier_wait(u32 barrier, u32 parity) {
    asm volatile(
        "{\n.reg .pred done;\n"
        "again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again;\n}"
        :: "r"(barrier), "r"(parity) : "memory");
}

/// Makes barrier_init visible to the copy engine; a barrier of the whole block must follow.
__device__ __forceinline__ void barrier_init_fence() {
    asm volatile("fence.mbarrier_init.release.cluster;\nfence.proxy.async;" ::: "memory");
}

/// Copies the tile at (channel, row, head) to `tile`; `barrier` counts TILE_BYTES.
__device__ __forceinline__ void copy_tile(u32 tile, const TensorMap* map, u32 barrier, u32 channel, u32 row, u32 head) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], [%5];"
        :: "r"(tile), "l"(map), "r"(channel), "r"(row), "r"(head), "r"(barrier) : "memory");
}

/// A tile as wgmma's operand, channels contiguous: rows of 8 lie 1024 bytes apart, swizzled by 128 bytes.
__device__ __forceinline__ u64 tile_descriptor(u32 tile) {
    return (u64)((tile & 0x3FFFFu) >> 4) | (1ull << 16) | (64ull << 32) | (1ull << 62);
}

__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

#if ELEMENT_BF16
#define WGMMA_TYPES "bf16.bf16"
#else
#define WGMMA_TYPES "f16.f16"
#endif

#define ACC4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define ACC32(d) ACC4(d, 0), ACC4(d, 4), ACC4(d, 8), ACC4(d, 12), ACC4(d, 16), ACC4(d, 20), ACC4(d, 24), ACC4(d, 28)
#define ACC32_NAMES                                                                     \
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "           \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}"

/// d[64 x 64] (+)= a[64 x 16] * b[64 x 16]^T, both from shared memory; `add` 0 overwrites d.
///
/// d[4n + 2h + e] of lane l of warp w is row 16w + 8h + l/4, column 8n + 2(l % 4) + e.
__device__ __forceinline__ void wgmma_64x64x16(float (&d)[32], u64 a, u64 b, u32 add) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32." WGMMA_TYPES " " ACC32_NAMES ", %32, %33, p, 1, 1, 0, 0;\n}"
        : ACC32(d) : "l"(a), "l"(b), "r"(add));
}

/// A tile as wgmma's second operand, transposed: its rows are what is summed over, 16 of them (2048 bytes) a product.
__device__ __forceinline__ u64 transposed_descriptor(u32 tile) { return tile_descriptor(tile); }

/// d[64 x 64] (+)= a[64 x 16] * b[16 x 64], a from registers, b 16 rows of a tile in shared memory.
__device__ __forceinline__ void wgmma_64x64x16(float (&d)[32], const u32 (&a)[4], u64 b, u32 add) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32." WGMMA_TYPES " " ACC32_NAMES ", {%32, %33, %34, %35}, %36, p, 1, 1, 1;\n}"
        : ACC32(d) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));
}

/// Two values as one register, the first in the low half.
__device__ __forceinline__ u32 pack(float low, float high) {
    u32 both;
#if ELEMENT_BF16
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
#else
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
#endif
    return both;
}

/// A 64 x 64 product as the next one's first operand: four pieces of 16 columns.
__device__ __forceinline__ void pack_tile(u32 (&a)[4][4], const float (&d)[32]) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) a[i][j] = pack(d[8 * i + 2 * j], d[8 * i + 2 * j + 1]);
}

__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/// Waits for all products of this warpgroup. What they write must then be named by wgmma_written before it is read.
__device__ __forceinline__ void wgmma_wait() { asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory"); }
__device__ __forceinline__ void wgmma_written(float (&d)[32]) { asm volatile("" : ACC32(d) :: "memory"); }

/// Scores and their like: d = a b^T over all channels, both operands tiles with channels contiguous.
template <u32 STEPS_OF_16>
__device__ __forceinline__ void multiply_channels(float (&d)[32], u64 a, u64 b) {
#pragma unroll
    for (u32 i = 0; i < STEPS_OF_16; ++i) {
        u64 at = i / 4u * (TILE_BYTES >> 4) + i % 4u * 2u;
        wgmma_64x64x16(d, a + at, b + at, i > 0u);
    }
}

/// d += a b: a 64 x 64 from registers, b one panel of a tile.
__device__ __forceinline__ void multiply_rows(float (&d)[32], const u32 (&a)[4][4], u64 b) {
#pragma unroll
    for (u32 i = 0; i < 4u; ++i) wgmma_64x64x16(d, a[i], b + i * (2048u >> 4), 1u);
}

template <u32 REGISTERS>
__device__ __forceinline__ void give_registers() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" :: "n"(REGISTERS)); }
template <u32 REGISTERS>
__device__ __forceinline__ void take_registers() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" :: "n"(REGISTERS)); }

/// Copies `bytes` (a multiple of 16, like both addresses) to shared memory.
__device__ __forceinline__ void copy_bytes(u32 to, const void* from, u32 barrier, u32 bytes) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
        :: "r"(to), "l"(from), "r"(bytes), "r"(barrier) : "memory");
}
