//! Times the kernels beside their floors: checks first, then events, inputs rotated so that nothing sits in L2.
//!
//! `bench [influence | decode | attention | chunks]`, all of them by default; without a device it says why and does nothing.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a bench prints its table, and stops at the first error"
)]

#[path = "../tests/twin/mod.rs"]
#[expect(dead_code, reason = "tests use more of it")]
mod twin;

use half::bf16;
use moa_kernels::{
    Attention, AttentionGradients, AttentionShape, Buffer, CacheSlots, Chunk, ChunkPart, Decode,
    DecodeWorkspace, Gpu, HeadShape, Influence, InfluenceInputs, InfluenceShape, KvBuffers, Layout,
    Prefill, QkvRows, RequestSlots, RowDots,
};
use moa_mask::density::{attention_density, kv_density};
use moa_mask::{HeadMask, KvFormat, RingLayout};
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
    let wanted = std::env::args().nth(1);
    let wants = |name: &str| wanted.as_deref().is_none_or(|wanted| wanted == name);
    if wants("influence") {
        influence(&gpu);
    }
    if wants("decode") {
        decode(&gpu);
    }
    if wants("attention") {
        attention(&gpu);
    }
    if wants("chunks") {
        chunks(&gpu);
    }
}

fn influence(gpu: &Gpu) {
    check(gpu);
    println!(
        "influence, bf16, one layer, B=1; floor: 2 products over the causal half at {TFLOPS} TFLOP/s"
    );
    println!("| heads | KV | D | S | ms | floor ms | TFLOP/s | workspace MiB | input MiB |");
    println!("|---|---|---|---|---|---|---|---|---|");
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
            layout: Layout::HeadsFirst,
        };
        time(gpu, shape);
    }
}

fn attention(gpu: &Gpu) {
    println!("attention, bf16, one layer, B=1, sink 64; visible: work counted by visible pairs");
    println!(
        "| heads | KV | D | S | kv_density | attention_density | forward ms | TFLOP/s visible | backward ms | TFLOP/s visible |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    for len in [8192, 32768] {
        for kv_heads in [32, 8] {
            for density in [1.0, 0.5, 0.25] {
                time_attention(gpu, kv_heads, len, density);
            }
        }
    }
}

fn decode(gpu: &Gpu) {
    let ceiling = moa_kernels::read_gigabytes_per_sec(gpu, 10).unwrap();
    println!(
        "decode, bf16, one layer, D=128, 32 query heads; read bandwidth in this call {ceiling:.0} GB/s"
    );
    println!(
        "| KV | batch | S | cache | kv_density | visible MB | us | floor us | GB/s | of the ceiling |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    for (kv_heads, batch, len, density) in [
        (8, 64, 16384, 1.0),
        (8, 64, 16384, 0.5),
        (8, 64, 16384, 0.25),
        (32, 16, 8192, 1.0),
        (32, 16, 8192, 0.5),
        (32, 16, 8192, 0.25),
        (4, 64, 16384, 0.5),
        (32, 1, 32768, 1.0),
        (32, 1, 32768, 0.5),
        (8, 1, 131_072, 0.5),
        (8, 1, 16384, 1.0),
        (8, 1, 16384, 0.5),
        (32, 1, 4096, 0.5),
    ] {
        for format in [KvFormat::Sixteen, KvFormat::Int8] {
            time_decode(gpu, ceiling, format, (kv_heads, batch, len, density));
        }
    }
}

fn time_decode(
    gpu: &Gpu,
    ceiling: f64,
    format: KvFormat,
    (kv_heads, batch, len, density): (u32, usize, u32, f64),
) {
    let shape = HeadShape {
        heads: 32,
        kv_heads,
        head_dim: 128,
    };
    let masks = ragged(kv_heads, len, density);
    let (mut requests, mut slots) = (Vec::new(), 0u32);
    for _ in 0..batch {
        let heads = masks.iter().map(|&mask| {
            let layout = RingLayout::new(mask, len, 64);
            let offset = slots;
            slots += layout.slots();
            (mask, layout, offset)
        });
        requests.push(RequestSlots {
            heads: heads.collect(),
        });
    }
    let keys: u64 = masks
        .iter()
        .map(|mask| u64::from(mask.span().min(len)))
        .sum::<u64>()
        * batch as u64;
    let bytes = keys as f64 * 2.0 * format.row_bytes(128) as f64;
    let sets = if bytes < 4e9 {
        2 + (2e8 / bytes) as u64
    } else {
        1
    };
    let caches: Vec<KvBuffers<bf16>> = (0..sets)
        .map(|set| {
            let mut kv = KvBuffers::zeros(gpu, format, slots as usize, 128).unwrap();
            let noise = random(gpu, 1 << 22, 1.0, set);
            match &mut kv {
                KvBuffers::Sixteen { k, v } => {
                    gpu.repeat(&noise, k).unwrap();
                    gpu.repeat(&noise, v).unwrap();
                }
                KvBuffers::Int8 { k, v, scales } => {
                    let bytes: Vec<i8> = (0..1 << 22).map(|i| (i * 89 % 251) as i8).collect();
                    let bytes = gpu.upload(&bytes).unwrap();
                    gpu.repeat(&bytes, k).unwrap();
                    gpu.repeat(&bytes, v).unwrap();
                    let scale = gpu.upload(&[1.0f32 / 64.0; 4096]).unwrap();
                    gpu.repeat(&scale, scales).unwrap();
                }
            }
            kv
        })
        .collect();
    let q = random(gpu, batch * 32 * 128, 1.0, 99);
    let lens = gpu.upload(&vec![len; batch]).unwrap();
    let mut out = gpu.zeros::<bf16>(q.len()).unwrap();
    let cache = CacheSlots::new(gpu, shape, &requests, slots as usize).unwrap();
    let decode = Decode::new::<bf16>(gpu, &cache, format).unwrap();
    let mut workspace = DecodeWorkspace::new(gpu, [&decode]).unwrap();
    // Ten steps a measurement, recorded: launches follow one another as they do in a model.
    let mut steps = || {
        for j in 0..10 {
            let kv = &caches[j % caches.len()];
            decode.run(gpu, &cache, &mut workspace, &q, kv, &lens, 0.088, &mut out)?;
        }
        Ok(())
    };
    steps().unwrap();
    let graph = gpu.record(steps).unwrap();
    let ms = median(gpu, 15, |_| gpu.replay(&graph).unwrap()) / 10.0;
    let rate = bytes / f64::from(ms) / 1e6;
    let label = match format {
        KvFormat::Sixteen => "16 bits",
        KvFormat::Int8 => "int8",
    };
    println!(
        "| {kv_heads} | {batch} | {len} | {label} | {:.3} | {:.0} | {:.1} | {:.1} | {rate:.0} | {:.2} |",
        kv_density(masks.iter().copied(), len),
        bytes / 1e6,
        ms * 1e3,
        bytes / ceiling / 1e3,
        rate / ceiling
    );
}

/// A whole prompt in chunks over rings, one layer: attention and commits, and attention alone of the prompt in one piece.
fn chunks(gpu: &Gpu) {
    println!("prefill in chunks over rings, bf16, one layer, B=1, 32 query heads, D=128, sink 64");
    println!("| KV | S | chunk | kv_density | attention_density | ms | TFLOP/s visible |");
    println!("|---|---|---|---|---|---|---|");
    for (kv_heads, len, chunk) in [
        (32, 8192, 8192),
        (32, 8192, 2048),
        (32, 8192, 512),
        (8, 32768, 4096),
    ] {
        for density in [1.0, 0.5, 0.25] {
            time_chunks(gpu, kv_heads, len, chunk, density);
        }
    }
}

fn time_chunks(gpu: &Gpu, kv_heads: u32, len: u32, chunk: u32, density: f64) {
    let shape = HeadShape {
        heads: 32,
        kv_heads,
        head_dim: 128,
    };
    let masks = ragged(kv_heads, len, density);
    let mut slots = 0;
    let heads = masks.iter().map(|&mask| {
        let layout = RingLayout::new(mask, len, 64);
        slots += layout.slots();
        (mask, layout, slots - layout.slots())
    });
    let request = RequestSlots {
        heads: heads.collect(),
    };
    let cache = CacheSlots::new(gpu, shape, &[request], slots as usize).unwrap();
    let format = KvFormat::Sixteen;
    let mut kv = KvBuffers::<bf16>::zeros(gpu, format, slots as usize, 128).unwrap();
    let prefill = Prefill::new::<bf16>(gpu, shape).unwrap();
    let rows = QkvRows::new::<bf16>(gpu, shape, format).unwrap();
    let parts: Vec<Chunk> = (0..len / chunk)
        .map(|i| {
            let part = ChunkPart {
                request: 0,
                start: i * chunk,
                len: chunk,
            };
            Chunk::new(gpu, shape, 1, &[part]).unwrap()
        })
        .collect();
    let tensor = |heads: u32, seed| random(gpu, (chunk * heads * 128) as usize, 1.0, seed);
    let (q, k, v) = (tensor(32, 1), tensor(kv_heads, 2), tensor(kv_heads, 3));
    let mut out = gpu.zeros::<bf16>(q.len()).unwrap();
    let scale = 1.0 / 128f32.sqrt();
    let ms = median(gpu, 9, |_| {
        for part in &parts {
            let KvBuffers::Sixteen {
                k: slots_k,
                v: slots_v,
            } = &kv
            else {
                unreachable!()
            };
            prefill
                .run(
                    gpu,
                    &cache,
                    part,
                    &q,
                    (&k, &v),
                    (slots_k, slots_v),
                    scale,
                    &mut out,
                )
                .unwrap();
            rows.commit(gpu, &cache, part, (&k, &v), &mut kv).unwrap();
        }
    });
    let share = attention_density(masks.iter().copied(), len);
    let pairs = f64::from(len) * f64::from(len + 1) / 2.0 * 32.0 * share;
    println!(
        "| {kv_heads} | {len} | {chunk} | {:.3} | {share:.3} | {ms:.3} | {:.0} |",
        kv_density(masks.iter().copied(), len),
        pairs * 4.0 * 128.0 / f64::from(ms) / 1e9,
    );
}

/// Spans from half to one and a half of the density, head by head; a sink of 64.
fn ragged(kv_heads: u32, len: u32, density: f64) -> Vec<HeadMask> {
    (0..kv_heads)
        .map(|head| {
            if density >= 1.0 {
                return HeadMask::DENSE;
            }
            let part = density * (0.5 + f64::from(head) / f64::from(kv_heads - 1));
            let span = (part * f64::from(len) / 64.0).round() as u32 * 64;
            HeadMask::from_span(span, 64)
        })
        .collect()
}

fn median(gpu: &Gpu, repeats: usize, mut work: impl FnMut(usize)) -> f32 {
    let mut times: Vec<f32> = (0..repeats + 2)
        .map(|i| {
            gpu.time_ms(|| {
                work(i);
                Ok(())
            })
            .unwrap()
        })
        .skip(2)
        .collect();
    times.sort_by(f32::total_cmp);
    times[times.len() / 2]
}

fn time_attention(gpu: &Gpu, kv_heads: u32, len: u32, density: f64) {
    let shape = AttentionShape {
        heads: 32,
        kv_heads,
        q_len: len,
        q_start: 0,
        head_dim: 128,
        layout: Layout::HeadsFirst,
    };
    let masks = ragged(kv_heads, len, density);
    let attention = Attention::new::<bf16>(gpu, shape, &masks).unwrap();
    let (rows, kv_rows) = ((32 * len * 128) as usize, (kv_heads * len * 128) as usize);
    let inputs: Vec<Inputs> = (0..2u64)
        .map(|set| Inputs {
            q: random(gpu, rows, 1.0, 4 * set),
            k: random(gpu, kv_rows, 1.0, 4 * set + 1),
            v: random(gpu, kv_rows, 1.0, 4 * set + 2),
            grad_out: random(gpu, rows, 1.0, 4 * set + 3),
        })
        .collect();
    let scale = 1.0 / 128f32.sqrt();
    let mut out = gpu.zeros::<bf16>(rows).unwrap();
    let mut lse = gpu.zeros::<f32>(shape.row_values()).unwrap();
    let mut row_dot = gpu.zeros::<f32>(shape.row_values()).unwrap();
    let (mut q, mut k, mut v) = (
        gpu.zeros::<bf16>(rows).unwrap(),
        gpu.zeros::<bf16>(kv_rows).unwrap(),
        gpu.zeros::<bf16>(kv_rows).unwrap(),
    );
    let repeats = if len > 8192 { 7 } else { 21 };
    let forward = median(gpu, repeats, |i| {
        let set = &inputs[i % 2];
        attention
            .forward(gpu, &set.q, &set.k, &set.v, scale, &mut out, &mut lse)
            .unwrap();
    });
    // lse and D of the last forward's inputs serve both sets: the time does not depend on values.
    let backward = median(gpu, repeats, |i| {
        let set = &inputs[i % 2];
        attention
            .row_dot(gpu, &out, &set.grad_out, &mut row_dot)
            .unwrap();
        let gradients = AttentionGradients {
            q: &mut q,
            k: &mut k,
            v: &mut v,
        };
        attention
            .backward(
                gpu,
                &set.q,
                &set.k,
                &set.v,
                &set.grad_out,
                &lse,
                &row_dot,
                scale,
                gradients,
            )
            .unwrap();
    });
    let share = attention_density(masks.iter().copied(), len);
    let pairs = f64::from(len) * f64::from(len + 1) / 2.0 * 32.0 * share;
    println!(
        "| 32 | {kv_heads} | 128 | {len} | {:.3} | {share:.3} | {forward:.3} | {:.0} | {backward:.3} | {:.0} |",
        kv_density(masks.iter().copied(), len),
        pairs * 4.0 * 128.0 / f64::from(forward) / 1e9,
        pairs * 10.0 * 128.0 / f64::from(backward) / 1e9,
    );
}

fn check(gpu: &Gpu) {
    let shape = InfluenceShape {
        heads: 8,
        kv_heads: 4,
        len: 2048,
        head_dim: 128,
        sink: 64,
        layout: Layout::HeadsFirst,
    };
    let layer = Layer::<bf16>::random(shape, 1.0, 1);
    let mut curves = gpu.zeros::<f64>(shape.curve_values()).unwrap();
    let mut kernel = Influence::new::<bf16>(gpu, shape, 48 << 20).unwrap();
    let inputs = InfluenceInputs {
        q: &gpu.upload(&layer.q).unwrap(),
        k: &gpu.upload(&layer.k).unwrap(),
        v: &gpu.upload(&layer.v).unwrap(),
        grad_out: &gpu.upload(&layer.grad_out).unwrap(),
        softmax_scale: layer.softmax_scale,
    };
    let mut row_dot = gpu.zeros(shape.row_values()).unwrap();
    let dots = RowDots::OnCurve {
        masks: &[HeadMask::DENSE; 4],
        row_dot: &mut row_dot,
    };
    kernel.add(gpu, &inputs, dots, &mut curves).unwrap();
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
    let block: Vec<bf16> = Random(seed).values(len.min(4_194_301), scale);
    let mut buffer = gpu.zeros::<bf16>(len).unwrap();
    gpu.repeat(&gpu.upload(&block).unwrap(), &mut buffer)
        .unwrap();
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
    let mut row_dot = gpu.zeros::<f32>(shape.row_values()).unwrap();
    let masks = vec![HeadMask::DENSE; shape.kv_heads as usize];
    let mut curves = gpu.zeros::<f64>(shape.curve_values()).unwrap();
    let workspace = (48 << 20).max(input_bytes / 4);
    let mut kernel = Influence::new::<bf16>(gpu, shape, workspace).unwrap();
    let work = f64::from(shape.len) * f64::from(shape.len + 1) / 2.0
        * f64::from(shape.heads)
        * 4.0
        * f64::from(shape.head_dim);
    let repeats = ((2e15 / work) as usize).clamp(3, 40);
    let times = median(gpu, repeats, |i| {
        let set = &inputs[i % inputs.len()];
        let read = InfluenceInputs {
            q: &set.q,
            k: &set.k,
            v: &set.v,
            grad_out: &set.grad_out,
            softmax_scale: 1.0 / (shape.head_dim as f32).sqrt(),
        };
        let dots = RowDots::OnCurve {
            masks: &masks,
            row_dot: &mut row_dot,
        };
        kernel.add(gpu, &read, dots, &mut curves).unwrap();
    });
    println!(
        "| {} | {} | {} | {} | {times:.3} | {:.3} | {:.0} | {:.1} | {:.0} |",
        shape.heads,
        shape.kv_heads,
        shape.head_dim,
        shape.len,
        work / TFLOPS / 1e9,
        work / f64::from(times) / 1e9,
        kernel.workspace_bytes() as f64 / (1 << 20) as f64,
        input_bytes as f64 / (1 << 20) as f64,
    );
    let finite = gpu.download(&curves).unwrap().iter().all(|x| x.is_finite());
    assert!(finite, "every curve was written");
}
