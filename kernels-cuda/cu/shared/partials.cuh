// Partial sums of a walk over tiles: where they lie, and how a warp makes them.

// A bit of the lane number chooses which of two values this lane sums with its partner's.
__device__ __forceinline__ float exchange_sum(bool odd, float even_value, float odd_value, u32 mask) {
    float give = odd ? even_value : odd_value;
    float keep = odd ? odd_value : even_value;
    return keep + __shfl_xor_sync(~0u, give, mask);
}

// Bins before `slot` within one KV head of a launch that begins at slot `first_slot`, all KV heads of the launch before `kv_index` included. A slot
// of row tile t has t + 1 bins: those of windows that hide something, and the last for those that hide nothing.
__device__ __forceinline__ u64 slot_bins(u32 slot, u32 group) {
    u64 tile = slot / group, member = slot % group;
    return group * (tile * (tile + 1u) / 2u) + member * (tile + 1u);
}

__device__ __forceinline__ u64 bins_before(u32 kv_index, u32 slot, u32 first_slot, u32 end_slot, u32 group) {
    u64 base = slot_bins(first_slot, group);
    return kv_index * (slot_bins(end_slot, group) - base) + slot_bins(slot, group) - base;
}
