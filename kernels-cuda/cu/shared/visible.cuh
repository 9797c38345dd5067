// The one mask, for whole tiles: which key tiles a query tile needs, and which of their elements.
//
// A query at position i sees key j iff j <= i and (j < sink or i - j < window). Tiles that nobody sees are never
// visited; tiles that are seen in part are tested element by element.

struct Span { u32 sink, window; };

__device__ __forceinline__ bool attends(Span span, u32 i, u32 j) { return j <= i && (j < span.sink || i - j < span.window); }

// Whether all of a 64 x 64 tile is seen, queries from i, keys from j.
__device__ __forceinline__ bool all_attend(Span span, u32 i, u32 j) {
    return j + 63u <= i && (j + 63u < span.sink || i + 63u - j < span.window);
}

// Key tiles of queries at positions [first, last]: from `high` down to `low`, then sink tiles from 0 below `sinks`.
struct KeyTiles {
    u32 low, high, sinks;
    __device__ __forceinline__ KeyTiles(Span span, u32 first, u32 last) {
        high = last / 64u;
        low = first + 1u > span.window ? (first + 1u - span.window) / 64u : 0u;
        sinks = min((span.sink + 63u) / 64u, low);
    }
    __device__ __forceinline__ u32 count() const { return high - low + 1u + sinks; }
    __device__ __forceinline__ u32 at(u32 step) const { return step <= high - low ? high - step : step - (high - low + 1u); }
    __device__ __forceinline__ bool holds(u32 tile) const { return tile <= high && (tile >= low || tile < sinks); }
};
