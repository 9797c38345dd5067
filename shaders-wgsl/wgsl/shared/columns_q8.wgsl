// Eight inputs in the order of q8 weights.

fn first_inputs(a: vec4<f32>, b: vec4<f32>) -> vec4<f32> {
    return a;
}

fn last_inputs(a: vec4<f32>, b: vec4<f32>) -> vec4<f32> {
    return b;
}
