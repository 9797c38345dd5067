// Joins the partial results of decode attention: softmax over all parts of a head's keys.
//
// partials  rows of head_dim values (weighted sums of V), row_max, row_sum
// heads  where each query head's partials lie            y  [heads][head_dim] f32
// Grid: (heads); a workgroup of 256 handles one query head: a thread has a channel, and the threads beyond
// head_dim other parts. Weights go through workgroup memory, 512 parts at a time. An empty part has row_sum 0 and UNSEEN
// for its row_max; after the last part with keys nothing else is read. Numerics: f32. Twin: reference/src/merge_lse.rs.

@group(0) @binding(2) var<storage, read> partials: array<f32>;
@group(0) @binding(3) var<storage, read> heads: array<HeadParts>;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;

const THREADS: u32 = 256u;
const PARTIAL: u32 = HEAD_DIM + 2u;
const LANES: u32 = THREADS / HEAD_DIM;
const TILE_PARTS: u32 = 512u;

var<workgroup> weights: array<f32, 512>;
var<workgroup> values: array<f32, 256>;
var<workgroup> pairs: array<vec2<f32>, 256>;

// The largest of either component.
fn largest(thread: u32, value: vec2<f32>) -> vec2<f32> {
    pairs[thread] = value;
    workgroupBarrier();
    var result = value;
    if (thread < 16u) {
        for (var other = thread; other < THREADS; other += 16u) {
            result = max(result, pairs[other]);
        }
        pairs[thread] = result;
    }
    workgroupBarrier();
    result = pairs[0];
    for (var other = 1u; other < 16u; other += 1u) {
        result = max(result, pairs[other]);
    }
    return result;
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let head = heads[group.x];
    // The parts with keys are the first ones; while the cache fills there are many without.
    var own = vec2<f32>(UNSEEN, 0.0);
    for (var part = thread; part < head.parts; part += THREADS) {
        let part_max = partials[(head.first + part * head.stride) * PARTIAL + HEAD_DIM];
        own = vec2<f32>(max(own.x, part_max), select(own.y, f32(part + 1u), part_max > UNSEEN));
    }
    let all = largest(thread, own);
    let row_max = all.x;
    let with_keys = u32(all.y);

    let channel = thread % HEAD_DIM;
    let lane = thread / HEAD_DIM;
    let step = LANES * head.stride * PARTIAL;
    var sum = 0.0;
    var row_sum = 0.0;
    for (var tile = 0u; tile < head.parts; tile += TILE_PARTS) {
        let parts = min(max(with_keys, tile) - tile, TILE_PARTS);
        workgroupBarrier();
        for (var part = thread; part < parts; part += THREADS) {
            let at = (head.first + (tile + part) * head.stride) * PARTIAL + HEAD_DIM;
            let weight = exp(partials[at] - row_max);
            weights[part] = weight;
            row_sum += weight * partials[at + 1u];
        }
        workgroupBarrier();
        if (lane < LANES) {
            var part = lane;
            var at = (head.first + (tile + lane) * head.stride) * PARTIAL + channel;
            // Four at a time, so that four are on their way at once.
            for (; part + 3u * LANES < parts; part += 4u * LANES) {
                let a = partials[at];
                let b = partials[at + step];
                let c = partials[at + 2u * step];
                let d = partials[at + 3u * step];
                sum += (weights[part] * a + weights[part + LANES] * b)
                    + (weights[part + 2u * LANES] * c + weights[part + 3u * LANES] * d);
                at += 4u * step;
            }
            for (; part < parts; part += LANES) {
                sum += weights[part] * partials[at];
                at += step;
            }
        }
    }

    workgroupBarrier();
    weights[thread] = row_sum;
    values[thread] = sum;
    workgroupBarrier();
    if (thread < 16u) {
        for (var other = thread + 16u; other < THREADS; other += 16u) {
            row_sum += weights[other];
        }
        weights[thread] = row_sum;
    }
    workgroupBarrier();
    if (thread < HEAD_DIM) {
        var total = 0.0;
        for (var other = 0u; other < 16u; other += 1u) {
            total += weights[other];
        }
        for (var other = 1u; other < LANES; other += 1u) {
            sum += values[other * HEAD_DIM + thread];
        }
        y[group.x * HEAD_DIM + thread] = sum / total;
    }
}
