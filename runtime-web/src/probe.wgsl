// What a device can do at best, for benches: a plain read of a buffer, and a dispatch that does nothing.
//
// data  any words            sums  one word, written where a sum has a value that it never has
// Grid: so many workgroups of 256; each thread reads 16 bytes, a whole grid further each time.

@group(0) @binding(0) var<storage, read> data: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read_write> sums: array<u32>;

@compute @workgroup_size(256)
fn read_all(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let step = groups.x * 256u;
    let length = arrayLength(&data);
    var a = vec4<u32>(0u);
    var b = vec4<u32>(0u);
    var c = vec4<u32>(0u);
    var d = vec4<u32>(0u);
    for (var index = id.x; index + 3u * step < length; index += 4u * step) {
        a ^= data[index];
        b ^= data[index + step];
        c ^= data[index + 2u * step];
        d ^= data[index + 3u * step];
    }
    let all = (a ^ b) ^ (c ^ d);
    if ((all.x ^ all.y ^ all.z ^ all.w) == 0x9e3779b9u) {
        sums[0] = id.x;
    }
}

@compute @workgroup_size(64)
fn nothing(@builtin(local_invocation_index) thread: u32) {
    if (thread == 0u) {
        sums[0] += arrayLength(&data) & 1u;
    }
}
