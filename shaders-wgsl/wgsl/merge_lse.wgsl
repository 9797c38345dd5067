// Joins the partial results of decode attention: softmax over all parts of a head's keys.
//
// partials  rows of head_dim values (weighted sums of V), row_max, row_sum
// heads  where each query head's partials lie            y  [heads][head_dim] f32 or codes
// Grid: (heads * head_dim / MERGE_CHANNELS); a workgroup of 256 gives MERGE_CHANNELS channels of a head; the threads
// beyond take other parts, four at a time. Parts without keys are not read. A thread has its own online softmax, and
// lanes are joined at the end. Numerics: f32. Twin: reference/src/merge_lse.rs.

@group(0) @binding(1) var<storage, read> state: StepState;
@group(0) @binding(2) var<storage, read> partials: array<f32>;
@group(0) @binding(3) var<storage, read> heads: array<HeadParts>;
@group(0) @binding(5) var<uniform> spans: array<HeadSpan, KV_HEADS>;

const THREADS: u32 = 256u;
const PARTIAL: u32 = HEAD_DIM + 2u;
const LANES: u32 = THREADS / MERGE_CHANNELS;
const SLICES: u32 = HEAD_DIM / MERGE_CHANNELS;

var<workgroup> sums: array<f32, 256>;
// Of each lane: its maximum, and its sum of weights.
var<workgroup> lanes: array<vec2<f32>, LANES>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let head = group.x / SLICES;
    let places = heads[head];
    let visible = visible_keys(spans[head / GQA_GROUP], state.start);
    if (state.len == 0u) {
        return;
    }
    let share = keys_per_part(visible, places.parts);
    let parts = (visible + share - 1u) / share;
    let channel = (group.x % SLICES) * MERGE_CHANNELS + thread % MERGE_CHANNELS;
    let lane = thread / MERGE_CHANNELS;

    var row_max = UNSEEN;
    var row_sum = 0.0;
    var sum = 0.0;
    let step = places.stride * PARTIAL;
    for (var part = lane; part < parts; part += 4u * LANES) {
        // Past the end the last part again, without weight.
        let nth = min(vec4<u32>(part) + vec4<u32>(0u, 1u, 2u, 3u) * LANES, vec4<u32>(parts - 1u));
        let at = places.first * PARTIAL + nth * step;
        let values = vec4<f32>(
            partials[at.x + channel],
            partials[at.y + channel],
            partials[at.z + channel],
            partials[at.w + channel],
        );
        var part_max = vec4<f32>(
            partials[at.x + HEAD_DIM],
            partials[at.y + HEAD_DIM],
            partials[at.z + HEAD_DIM],
            partials[at.w + HEAD_DIM],
        );
        let part_sums = vec4<f32>(
            partials[at.x + HEAD_DIM + 1u],
            partials[at.y + HEAD_DIM + 1u],
            partials[at.z + HEAD_DIM + 1u],
            partials[at.w + HEAD_DIM + 1u],
        );
        let ends = vec4<u32>(part) + vec4<u32>(0u, 1u, 2u, 3u) * LANES < vec4<u32>(parts);
        part_max = select(vec4<f32>(UNSEEN), part_max, ends);
        let new_max = max(row_max, max(max(part_max.x, part_max.y), max(part_max.z, part_max.w)));
        let weights = exp(part_max - vec4<f32>(new_max));
        let shrink = exp(row_max - new_max);
        row_max = new_max;
        row_sum = row_sum * shrink + dot(weights, part_sums);
        sum = sum * shrink + dot(weights, values);
    }
    sums[thread] = sum;
    if (thread % MERGE_CHANNELS == 0u) {
        lanes[lane] = vec2<f32>(row_max, row_sum);
    }
    workgroupBarrier();
    if (thread < MERGE_CHANNELS) {
        for (var other = 0u; other < LANES; other += 1u) {
            row_max = max(row_max, lanes[other].x);
        }
        var total = 0.0;
        sum = 0.0;
        for (var other = 0u; other < LANES; other += 1u) {
            let weight = exp(lanes[other].x - row_max);
            total += weight * lanes[other].y;
            sum += weight * sums[other * MERGE_CHANNELS + thread];
        }
        keep(thread, head * HEAD_DIM + channel, sum / total);
    }
    finish(thread, group.x * MERGE_CHANNELS, HEADS * HEAD_DIM);
}
