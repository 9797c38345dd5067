// Eight inputs in the order of the bytes that order_q4 makes of weights: even columns first.

fn first_inputs(a: vec4<f32>, b: vec4<f32>) -> vec4<f32> {
    return vec4<f32>(a.xz, b.xz);
}

fn last_inputs(a: vec4<f32>, b: vec4<f32>) -> vec4<f32> {
    return vec4<f32>(a.yw, b.yw);
}
