// Where keys lie (mask/src/ring.rs): the key at position p sits in slot p while p < sink, else in slot sink + (p - sink) % ring.

__device__ __forceinline__ u64 slot_of(const HeadSpan& span, u32 p) {
    return span.slot_offset + (p < span.sink || span.ring == 0u ? p : span.sink + (p - span.sink) % span.ring);
}

// Whether the key at p of a run that ends before `end` enters its slot: of a run only sink keys and the last `ring` others do, so that each slot has
// one writer.
__device__ __forceinline__ bool enters(const HeadSpan& span, u32 p, u32 end) { return p < span.sink || end - p <= span.ring; }

