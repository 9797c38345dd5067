// q8 weights are signed bytes in the order of their columns; nothing is added to their products.

const HAS_OFFSET: bool = false;

fn first_inputs(a: vec4<f32>, b: vec4<f32>) -> vec4<f32> {
    return a;
}

fn last_inputs(a: vec4<f32>, b: vec4<f32>) -> vec4<f32> {
    return b;
}
