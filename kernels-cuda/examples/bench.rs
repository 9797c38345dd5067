//! Times the kernels beside their floors: checks first, then events, inputs rotated so that nothing sits in L2.
//!
//! `bench [seconds of timing a row]`; without a device it says why and does nothing.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a bench prints its table, and stops at the first error"
)]

#[path = "../tests/twin/mod.rs"]
mod twin;

use half::bf16;
use moa_kernels::{Buffer, Gpu, Influence, InfluenceInputs, InfluenceShape};
use twin::{Layer, Random};

/// Rate that the floors are counted with: a bf16 product of 8192^3 on an H100 (cuBLAS).
const TFLOPS: f64 = 760.0;

struct Inputs {
    q: Buffer<bf16>,
    k: Buffer<bf16>,
    v: Buffer<bf16>,
    grad_out: Buffer<bf16>,
}

fn main() {
    let gpu = match Gpu::open(0, None) {
        Ok(gpu) => gpu,
        Err(error) => {
            println!("no device: {error}; {}", error.hint());
            return;
        }
    };
    println!("{:?}", gpu.info());
    check(&gpu);
    println!(
        "influence, bf16, one layer, B=1; floor: 2 products over the causal half at {TFLOPS} TFLOP/s"
    );
    println!(
        "| heads | KV | D | S | ms median | min | floor ms | TFLOP/s | workspace MiB | input MiB |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    for (heads, kv_heads, head_dim, len) in [
        (32, 32, 128, 2048),
        (32, 32, 128, 4096),
        (32, 32, 128, 8192),
        (32, 8, 128, 8192),
        (32, 32, 64, 8192),
        (32, 32, 96, 8192),
        (9, 3, 64, 8192),
        (32, 32, 128, 32768),
        (32, 8, 128, 32768),
        (32, 32, 128, 131_072),
        (32, 8, 128, 131_072),
    ] {
        let shape = InfluenceShape {
            heads,
            kv_heads,
            len,
            head_dim,
            sink: 64,
        };
        time(&gpu, shape);
    }
}

fn check(gpu: &Gpu) {
    let shape = InfluenceShape {
        heads: 8,
        kv_heads: 4,
        len: 2048,
        head_dim: 128,
        sink: 64,
    };
    let layer = Layer::<bf16>::random(shape, 1.0, 1);
    let mut curves = gpu.zeros::<f64>(shape.curve_values()).unwrap();
    let mut kernel = Influence::new::<bf16>(gpu, shape, 48 << 20).unwrap();
    let inputs = InfluenceInputs {
        q: &gpu.upload(&layer.q).unwrap(),
        k: &gpu.upload(&layer.k).unwrap(),
        v: &gpu.upload(&layer.v).unwrap(),
        grad_out: &gpu.upload(&layer.grad_out).unwrap(),
        row_dot: &gpu.upload(&layer.row_dot).unwrap(),
        softmax_scale: layer.softmax_scale,
    };
    kernel.add(gpu, &inputs, &mut curves).unwrap();
    let (actual, expected) = (gpu.download(&curves).unwrap(), layer.curves(0));
    let largest = expected.iter().copied().fold(0.0, f64::max);
    let error = actual
        .iter()
        .zip(&expected)
        .map(|(a, e)| (a - e).abs())
        .fold(0.0, f64::max);
    assert!(
        error < 2e-5 * largest,
        "influence is wrong by {error} of {largest}"
    );
    println!(
        "checked against f64: largest error {:.2e} of the largest value",
        error / largest
    );
}

/// A tensor of random values: one random block of an odd size, again and again.
fn random(gpu: &Gpu, len: usize, scale: f32, seed: u64) -> Buffer<bf16> {
    let block: Vec<bf16> = Random(seed).values(len.min(16_777_213), scale);
    let mut buffer = gpu.zeros::<bf16>(len).unwrap();
    let mut at = 0;
    while at < len {
        let part = block.len().min(len - at);
        gpu.write(&mut buffer, at, &block[..part]).unwrap();
        at += part;
    }
    buffer
}

fn time(gpu: &Gpu, shape: InfluenceShape) {
    let (rows, dim) = ((shape.heads * shape.len) as usize, shape.head_dim as usize);
    let kv_rows = (shape.kv_heads * shape.len) as usize;
    let input_bytes = (rows + kv_rows) * dim * 2 * 2 + rows * 4;
    // As many sets as cover twice the 50 MB of L2, at most 3.
    let sets = (200_000_000 / input_bytes).clamp(1, 2) + 1;
    let inputs: Vec<Inputs> = (0..if input_bytes > 2_000_000_000 { 1 } else { sets } as u64)
        .map(|set| Inputs {
            q: random(gpu, rows * dim, 1.0, 4 * set),
            k: random(gpu, kv_rows * dim, 1.0, 4 * set + 1),
            v: random(gpu, kv_rows * dim, 1.0, 4 * set + 2),
            grad_out: random(gpu, rows * dim, 0.1, 4 * set + 3),
        })
        .collect();
    let row_dot = gpu.zeros::<f32>(rows).unwrap();
    let mut curves = gpu.zeros::<f64>(shape.curve_values()).unwrap();
    let workspace = (48 << 20).max(input_bytes / 8);
    let mut kernel = Influence::new::<bf16>(gpu, shape, workspace).unwrap();
    let work = f64::from(shape.len) * f64::from(shape.len + 1) / 2.0
        * f64::from(shape.heads)
        * 4.0
        * f64::from(shape.head_dim);
    let repeats = ((2e15 / work) as usize).clamp(3, 40);
    let mut times: Vec<f32> = (0..repeats + 2)
        .map(|i| {
            let set = &inputs[i % inputs.len()];
            let read = InfluenceInputs {
                q: &set.q,
                k: &set.k,
                v: &set.v,
                grad_out: &set.grad_out,
                row_dot: &row_dot,
                softmax_scale: 1.0 / (shape.head_dim as f32).sqrt(),
            };
            gpu.time_ms(|| kernel.add(gpu, &read, &mut curves)).unwrap()
        })
        .skip(2)
        .collect();
    times.sort_by(f32::total_cmp);
    let median = times[times.len() / 2];
    println!(
        "| {} | {} | {} | {} | {median:.3} | {:.3} | {:.3} | {:.0} | {:.1} | {:.0} |",
        shape.heads,
        shape.kv_heads,
        shape.head_dim,
        shape.len,
        times[0],
        work / TFLOPS / 1e9,
        work / f64::from(median) / 1e9,
        kernel.workspace_bytes() as f64 / (1 << 20) as f64,
        input_bytes as f64 / (1 << 20) as f64,
    );
    let finite = gpu.download(&curves).unwrap().iter().all(|x| x.is_finite());
    assert!(finite, "every curve was written");
}
