// Joins the partial results of decode attention: softmax over all parts of a head's keys.
//
// partials  rows of head_dim values (weighted sums of V), row_max, row_sum
// items  the work list; the first entry of each KV head tells where its partials lie and how many there are
// y  [heads][head_dim] f32; or codes
// Grid: (heads * head_dim / MERGE_CHANNELS); a workgroup of 256 gives MERGE_CHANNELS channels of a head; the threads
// beyond take other parts, four at a time. The first part always has keys and lies by head: it is on its way before
// anything is known. Parts without keys are not read. A thread has its own online softmax, and lanes are joined at the
// end. Numerics: f32. Twin: reference/src/merge_lse.rs.

@group(0) @binding(2) var<storage, read> partials: array<f32>;

const THREADS: u32 = 256u;
const LANES: u32 = THREADS / MERGE_CHANNELS;
const SLICES: u32 = HEAD_DIM / MERGE_CHANNELS;

var<workgroup> sums: array<f32, 256>;
// Of each lane: its maximum, and its sum of weights.
var<workgroup> lanes: array<vec2<f32>, LANES>;

// A word of four partial results.
fn of_parts(at: vec4<u32>) -> vec4<f32> {
    return vec4<f32>(partials[at.x], partials[at.y], partials[at.z], partials[at.w]);
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let head = group.x / SLICES;
    let channel = (group.x % SLICES) * MERGE_CHANNELS + thread % MERGE_CHANNELS;
    let lane = thread / MERGE_CHANNELS;
    let own = lane == 0u;
    var row_max = partials[head * PARTIAL + HEAD_DIM];
    var row_sum = partials[head * PARTIAL + HEAD_DIM + 1u];
    var sum = partials[head * PARTIAL + channel];
    let item = items[head / GQA_GROUP * ITEMS_PER_PART];
    let visible = visible_keys(item, state.start + 1u);
    if (state.len == 0u) {
        return;
    }
    let parts = min(item.parts, (visible + DECODE_ROUND - 1u) / DECODE_ROUND);
    if (parts > 1u) {
        // Only the first lane keeps the first part.
        row_max = select(UNSEEN, row_max, own);
        row_sum = select(0.0, row_sum, own);
        sum = select(0.0, sum, own);
        for (var part = select(lane, LANES, own); part < parts; part += 4u * LANES) {
            let nth = vec4<u32>(part) + vec4<u32>(0u, 1u, 2u, 3u) * LANES;
            // Past the end the last part again, without weight.
            let at = (min(nth, vec4<u32>(parts - 1u)) * GQA_GROUP + (item.first_row + head % GQA_GROUP)) * PARTIAL;
            let values = of_parts(at + channel);
            var part_max = of_parts(at + HEAD_DIM);
            let part_sums = of_parts(at + HEAD_DIM + 1u);
            part_max = select(vec4<f32>(UNSEEN), part_max, nth < vec4<u32>(parts));
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
        if (own) {
            for (var other = 1u; other < LANES; other += 1u) {
                row_max = max(row_max, lanes[other].x);
            }
            row_sum = 0.0;
            sum = 0.0;
            for (var other = 0u; other < LANES; other += 1u) {
                let weight = exp(lanes[other].x - row_max);
                row_sum += weight * lanes[other].y;
                sum += weight * sums[other * MERGE_CHANNELS + thread];
            }
        }
    }
    if (own) {
        keep(thread, head * HEAD_DIM + channel, sum / row_sum);
    }
    finish(thread, group.x * MERGE_CHANNELS, HEADS * HEAD_DIM);
}
