// Chooses a token by chance: penalties, temperature, top-k, top-p, min-p, and one draw, all on whole numbers.
//
// logits  [dim] f32, the buffer whole vectors            counts  [dim], see IN_PROMPT; the chosen token's is raised
// state, tokens, ids, stops  as in argmax
// Grid: (1); one workgroup of 256.
// The largest logit m gets the weight WEIGHT_ONE, another one exp((logit - m) / temperature) of it, rounded. Sums of
// whole numbers do not depend on their order, so histograms by atomics give the same answer every time. A logit's key
// is its bit pattern, made to rise with it. Top-k is the largest key that k keys reach, top-p the largest key such that
// the mass from it on reaches p of what top-k left: both are found digit by digit, 8 bits at a time, by histograms of
// counts or masses. Equal logits stay together. Nothing is sorted.
// The draw is the first word of Philox4x32-10 at the counter (position of the chosen token, 0, 0, 0) under the seed:
// the same seed gives the same token at the same place of the same text, whatever happened in between. It picks from
// the kept ids in the order id / 4 mod 256, then id.
// Numerics: f32 up to the weights. A logit that is no finite number is never chosen. Twin: reference/src/sample.rs.

@group(0) @binding(0) var<uniform> params: SampleParams;
@group(0) @binding(2) var<storage, read> logits: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read_write> counts: array<u32>;

const LOW_BITS: u32 = 13u;
const LOW_MASK: u32 = 0x1fffu;

// By digit: keys, or masses in two limbs, weight = high * 2^13 + low.
var<workgroup> digit_low: array<atomic<u32>, 256>;
var<workgroup> digit_high: array<atomic<u32>, 256>;
var<workgroup> sixteen_low: array<u32, 16>;
var<workgroup> sixteen_high: array<u32, 16>;
var<workgroup> thread_mass: array<vec2<u32>, 256>;
// What thread 0 found out: a threshold or a digit and what is left to reach.
var<workgroup> found: vec3<u32>;

// 64-bit numbers are (low, high).
fn limbs(low: u32, high: u32) -> vec2<u32> {
    let shifted = high << LOW_BITS;
    let sum = shifted + low;
    return vec2<u32>(sum, (high >> (32u - LOW_BITS)) + select(0u, 1u, sum < low));
}

fn add(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
    let low = a.x + b.x;
    return vec2<u32>(low, a.y + b.y + select(0u, 1u, low < a.x));
}

fn subtract(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
    return vec2<u32>(a.x - b.x, a.y - b.y - select(0u, 1u, a.x < b.x));
}

fn less(a: vec2<u32>, b: vec2<u32>) -> bool {
    return a.y < b.y || (a.y == b.y && a.x < b.x);
}

fn multiply(a: u32, b: u32) -> vec2<u32> {
    let a_low = a & 0xffffu;
    let a_high = a >> 16u;
    let b_low = b & 0xffffu;
    let b_high = b >> 16u;
    let low = a_low * b_low;
    let middle = a_high * b_low + (low >> 16u);
    let other = a_low * b_high + (middle & 0xffffu);
    return vec2<u32>(a * b, a_high * b_high + (middle >> 16u) + (other >> 16u));
}

// mass * part / 2^32, for a part in parts of 2^32.
fn part_of(mass: vec2<u32>, part: u32) -> vec2<u32> {
    return add(multiply(mass.y, part), vec2<u32>(multiply(mass.x, part).y, 0u));
}

fn draw(position: u32) -> u32 {
    var counter = vec4<u32>(position, 0u, 0u, 0u);
    var key = vec2<u32>(params.seed_low, params.seed_high);
    for (var round = 0u; round < 10u; round += 1u) {
        let a = multiply(0xd2511f53u, counter.x);
        let b = multiply(0xcd9e8d57u, counter.z);
        counter = vec4<u32>(b.y ^ counter.y ^ key.x, b.x, a.y ^ counter.w ^ key.y, a.x);
        key += vec2<u32>(0x9e3779b9u, 0xbb67ae85u);
    }
    return counter.x;
}

// The logit after penalties, or UNSEEN where it is no finite number.
fn penalized(id: u32, logit: f32) -> f32 {
    if (id >= params.dim || !(abs(logit) < -UNSEEN)) {
        return UNSEEN;
    }
    if (params.penalize == 0u || counts[id] == 0u) {
        return logit;
    }
    let generated = counts[id] & (IN_PROMPT - 1u);
    var value = select(logit * params.repetition, logit / params.repetition, logit > 0.0);
    value -= params.frequency * f32(generated);
    if (generated > 0u) {
        value -= params.presence;
    }
    return max(value, UNSEEN);
}

// Rises with the value; 0 for what is never chosen.
fn key_of(value: f32) -> u32 {
    let bits = bitcast<u32>(value);
    return select(select(bits | 0x80000000u, ~bits, bits >= 0x80000000u), 0u, value <= UNSEEN);
}

fn weight_of(value: f32, largest: f32) -> u32 {
    let exponent = max((value - largest) * params.inverse_temperature, -80.0);
    return u32(exp(exponent) * f32(WEIGHT_ONE) + 0.5);
}

// The largest key from which on there are so many keys, or so much mass; 1 at least.
fn threshold_of(thread: u32, largest: f32, by_mass: bool, needed: vec2<u32>) -> u32 {
    var prefix = 0u;
    var left = needed;
    for (var round = 0u; round < 4u; round += 1u) {
        let shift = 24u - 8u * round;
        atomicStore(&digit_low[thread], 0u);
        atomicStore(&digit_high[thread], 0u);
        workgroupBarrier();
        for (var index = thread; 4u * index < params.dim; index += THREADS) {
            let four = logits[index];
            for (var part = 0u; part < 4u; part += 1u) {
                let value = penalized(4u * index + part, four[part]);
                let key = key_of(value);
                let inside = round == 0u || (key >> (shift + 7u)) >> 1u == prefix;
                if (key > 0u && inside) {
                    let digit = (key >> shift) & 255u;
                    if (by_mass) {
                        let weight = weight_of(value, largest);
                        atomicAdd(&digit_low[digit], weight & LOW_MASK);
                        atomicAdd(&digit_high[digit], weight >> LOW_BITS);
                    } else {
                        atomicAdd(&digit_low[digit], 1u);
                    }
                }
            }
        }
        workgroupBarrier();
        if (thread < 16u) {
            var low = 0u;
            var high = 0u;
            for (var digit = 16u * thread; digit < 16u * thread + 16u; digit += 1u) {
                low += atomicLoad(&digit_low[digit]);
                high += atomicLoad(&digit_high[digit]);
            }
            sixteen_low[thread] = low;
            sixteen_high[thread] = high;
        }
        workgroupBarrier();
        if (thread == 0u) {
            var sixteen = 15u;
            for (; sixteen > 0u; sixteen -= 1u) {
                let mass = limbs(sixteen_low[sixteen], sixteen_high[sixteen]);
                if (!less(mass, left)) {
                    break;
                }
                left = subtract(left, mass);
            }
            var digit = 16u * sixteen + 15u;
            for (; digit > 16u * sixteen; digit -= 1u) {
                let mass = limbs(atomicLoad(&digit_low[digit]), atomicLoad(&digit_high[digit]));
                if (!less(mass, left)) {
                    break;
                }
                left = subtract(left, mass);
            }
            found = vec3<u32>((prefix << 8u) | digit, left);
        }
        workgroupBarrier();
        prefix = found.x;
        left = found.yz;
        workgroupBarrier();
    }
    return max(prefix, 1u);
}

// Each thread's mass of the kept keys, and thread 0's sum of them all.
fn masses(thread: u32, largest: f32, threshold: u32) -> vec2<u32> {
    var mass = vec2<u32>(0u);
    for (var index = thread; 4u * index < params.dim; index += THREADS) {
        let four = logits[index];
        for (var part = 0u; part < 4u; part += 1u) {
            let value = penalized(4u * index + part, four[part]);
            let weight = weight_of(value, largest);
            if (key_of(value) >= threshold && weight >= params.min_weight) {
                mass = add(mass, vec2<u32>(weight, 0u));
            }
        }
    }
    thread_mass[thread] = mass;
    workgroupBarrier();
    var total = vec2<u32>(0u);
    if (thread == 0u) {
        for (var other = 0u; other < THREADS; other += 1u) {
            total = add(total, thread_mass[other]);
        }
    }
    return total;
}

@compute @workgroup_size(256)
fn main(@builtin(local_invocation_index) thread: u32) {
    var value = UNSEEN;
    var id = NOBODY;
    for (var index = thread; 4u * index < params.dim; index += THREADS) {
        let four = logits[index];
        for (var part = 0u; part < 4u; part += 1u) {
            let logit = penalized(4u * index + part, four[part]);
            if (logit > value) {
                value = logit;
                id = 4u * index + part;
            }
        }
    }
    largest_of_all(thread, value, id);
    let largest = best_value[0];
    let likeliest = select(best_id[0], 0u, best_id[0] == NOBODY);
    if (params.inverse_temperature == 0.0) {
        if (thread == 0u && state.stopped == 0u) {
            counts[likeliest] += 1u;
            choose(likeliest);
        }
        return;
    }

    var threshold = 1u;
    if (params.top_k > 0u && params.top_k < params.dim) {
        threshold = threshold_of(thread, largest, false, vec2<u32>(params.top_k, 0u));
    }
    if (params.top_p < 0xffffffffu) {
        let total = masses(thread, largest, threshold);
        if (thread == 0u) {
            let part = part_of(total, params.top_p);
            // Something is always needed.
            found = vec3<u32>(0u, select(part, vec2<u32>(1u, 0u), all(part == vec2<u32>(0u))));
        }
        workgroupBarrier();
        let needed = found.yz;
        workgroupBarrier();
        threshold = max(threshold, threshold_of(thread, largest, true, needed));
    }
    let total = masses(thread, largest, threshold);
    if (thread == 0u) {
        // Below the total, since the draw is below 2^32.
        var left = part_of(total, draw(state.start + state.len));
        var lane = 0u;
        for (; lane < THREADS - 1u; lane += 1u) {
            if (less(left, thread_mass[lane])) {
                break;
            }
            left = subtract(left, thread_mass[lane]);
        }
        found = vec3<u32>(lane, left);
    }
    workgroupBarrier();
    if (thread == found.x) {
        var left = found.yz;
        var chosen = likeliest;
        for (var index = thread; 4u * index < params.dim; index += THREADS) {
            let four = logits[index];
            for (var part = 0u; part < 4u; part += 1u) {
                let candidate = penalized(4u * index + part, four[part]);
                let weight = weight_of(candidate, largest);
                if (key_of(candidate) >= threshold && weight >= params.min_weight) {
                    if (less(left, vec2<u32>(weight, 0u))) {
                        chosen = 4u * index + part;
                        index = params.dim;
                        break;
                    }
                    left = subtract(left, vec2<u32>(weight, 0u));
                }
            }
        }
        if (state.stopped == 0u) {
            counts[chosen] += 1u;
            choose(chosen);
        }
    }
}
