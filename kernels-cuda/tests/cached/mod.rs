//! Batches whose past lies in sink slots and rings, for tests: logical keys and values, and the slots as they lie in memory.
//!
//! Slots that no query of the step may see hold NaN. Heads of few channels are padded with zeros, as engines do.

use moa_kernels::{CacheSlots, Gpu, HeadShape, KvBuffers, RequestSlots};
use moa_mask::{HeadMask, KvFormat, RingLayout, SLACK};
use moa_reference::attention_prefill::{AttentionShape, attention_prefill};
use moa_reference::compare::Comparison;
use moa_reference::qkv_rows::{from_bytes, to_bytes};

use crate::cases::AttentionCase;
use crate::twin::{Random, Value};

/// How caches may be kept.
pub(crate) const FORMATS: [KvFormat; 2] = [KvFormat::Sixteen, KvFormat::Int8];

/// One request of a step: `start` tokens lie in its cache, `len` are in flight.
#[derive(Debug, Clone)]
pub(crate) struct Request<T> {
    pub(crate) context: u32,
    pub(crate) start: u32,
    pub(crate) len: u32,
    /// `[len, heads, head_dim]`.
    pub(crate) q: Vec<T>,
    /// `[start + len, kv_heads, head_dim]`.
    pub(crate) k: Vec<T>,
    pub(crate) v: Vec<T>,
}

/// A step of one layer.
#[derive(Debug, Clone)]
pub(crate) struct Batch<T> {
    pub(crate) shape: HeadShape,
    /// Channels that are not padding.
    pub(crate) channels: u32,
    pub(crate) masks: Vec<HeadMask>,
    pub(crate) requests: Vec<Request<T>>,
}

/// Slots on the host, in 16 bits.
#[derive(Debug, Clone)]
pub(crate) struct Slots<T> {
    pub(crate) requests: Vec<RequestSlots>,
    pub(crate) k: Vec<T>,
    pub(crate) v: Vec<T>,
}

impl<T: Value> Batch<T> {
    /// Random queries, keys and values; `steps` are context, start and length of each request.
    pub(crate) fn random(
        (heads, kv_heads, channels): (u32, u32, u32),
        masks: &[HeadMask],
        steps: &[(u32, u32, u32)],
        largest_score: f32,
        seed: u64,
    ) -> Self {
        let head_dim = if channels > 64 { 128 } else { 64 };
        let shape = HeadShape {
            heads,
            kv_heads,
            head_dim,
        };
        let mut random = Random(seed);
        let mut rows = |rows: u32, heads: u32, scale: f32| -> Vec<T> {
            (0..rows * heads * head_dim)
                .map(|i| {
                    let padding = i % head_dim >= channels;
                    let value = if padding {
                        0.0
                    } else {
                        random.normal() * scale
                    };
                    T::of(value)
                })
                .collect()
        };
        // Scores of unit rows have a spread of about 1; the largest of some hundreds is about 3.5.
        let scale = largest_score / 3.5;
        let requests = steps
            .iter()
            .map(|&(context, start, len)| Request {
                context,
                start,
                len,
                q: rows(len, heads, scale),
                k: rows(start + len, kv_heads, 1.0),
                v: rows(start + len, kv_heads, 1.0),
            })
            .collect();
        Self {
            shape,
            channels,
            masks: masks.to_vec(),
            requests,
        }
    }

    pub(crate) fn softmax_scale(&self) -> f32 {
        1.0 / (self.channels as f32).sqrt()
    }

    /// The slots after `written(request)` tokens. With `poison`, what the query at `request.start` cannot see is NaN; else it is noise.
    pub(crate) fn slots(&self, written: impl Fn(&Request<T>) -> u32, poison: bool) -> Slots<T> {
        let (dim, kv_heads) = (self.shape.head_dim as usize, self.shape.kv_heads as usize);
        // A few slots in front belong to nobody.
        let mut next = 3;
        let requests: Vec<RequestSlots> = self
            .requests
            .iter()
            .map(|request| RequestSlots {
                heads: self
                    .masks
                    .iter()
                    .map(|&mask| {
                        let layout = RingLayout::new(mask, request.context, SLACK);
                        next += layout.slots();
                        (mask, layout, next - layout.slots())
                    })
                    .collect(),
            })
            .collect();
        let fill = |random: &mut Random| -> Vec<T> {
            let values = next as usize * dim;
            if poison {
                vec![T::of(f32::NAN); values]
            } else {
                random.values(values, 5.0)
            }
        };
        let mut random = Random(77);
        let (mut k, mut v) = (fill(&mut random), fill(&mut random));
        for (slots, request) in requests.iter().zip(&self.requests) {
            for (kv_head, &(mask, layout, offset)) in slots.heads.iter().enumerate() {
                for slot in 0..layout.slots() {
                    let position = layout
                        .position(slot, written(request))
                        .filter(|&position| mask.attends(request.start, position));
                    if let Some(position) = position {
                        let from = (position as usize * kv_heads + kv_head) * dim;
                        let to = (offset + slot) as usize * dim;
                        k[to..to + dim].copy_from_slice(&request.k[from..from + dim]);
                        v[to..to + dim].copy_from_slice(&request.v[from..from + dim]);
                    }
                }
            }
        }
        Slots { requests, k, v }
    }

    /// What the queries see, by f64, under `masks`; `keys` says what a key or value is after it was `cached`.
    pub(crate) fn expected(
        &self,
        masks: &[HeadMask],
        cached: impl Fn(&Request<T>) -> u32,
        keys: impl Fn(&[f32]) -> Vec<f32>,
    ) -> Vec<f64> {
        let shape = AttentionShape {
            heads: self.shape.heads as usize,
            kv_heads: self.shape.kv_heads as usize,
            head_dim: self.channels as usize,
        };
        let (dim, channels) = (self.shape.head_dim as usize, self.channels as usize);
        let unpadded = |tensor: &[T]| -> Vec<f32> {
            let rows = tensor.chunks(dim);
            rows.flat_map(|row| row[..channels].iter().map(|x| x.get() as f32))
                .collect()
        };
        let mut all = Vec::new();
        for request in &self.requests {
            let past = |tensor: &[T]| -> Vec<f32> {
                let mut values = unpadded(tensor);
                let count = cached(request) as usize * shape.kv_heads * channels;
                for row in values[..count].chunks_mut(channels) {
                    let kept = keys(row);
                    row.copy_from_slice(&kept);
                }
                values
            };
            let (k, v) = (past(&request.k), past(&request.v));
            let attended =
                attention_prefill(shape, &unpadded(&request.q), &k, &v, masks, request.start);
            for row in attended.o.chunks(channels) {
                all.extend_from_slice(row);
                all.extend(std::iter::repeat_n(0.0, dim - channels));
            }
        }
        all
    }

    /// Queries, or new keys and values, of all requests, row after row.
    pub(crate) fn packed(&self, which: impl Fn(&Request<T>) -> &[T]) -> Vec<T> {
        self.requests
            .iter()
            .flat_map(|request| which(request).iter().copied())
            .collect()
    }

    /// The rows in flight of a tensor of keys or values.
    pub(crate) fn fresh<'a>(&self, request: &'a Request<T>, tensor: &'a [T]) -> &'a [T] {
        let width = (self.shape.kv_heads * self.shape.head_dim) as usize;
        &tensor[request.start as usize * width..]
    }
}

impl<T: Value> Slots<T> {
    /// The slots on the device, in either format. A row with a NaN becomes bytes whose scale is NaN.
    pub(crate) fn upload(
        &self,
        gpu: &Gpu,
        shape: HeadShape,
        format: KvFormat,
    ) -> (CacheSlots, KvBuffers<T>) {
        let dim = shape.head_dim as usize;
        let slots = self.k.len() / dim;
        let cache = CacheSlots::new(gpu, shape, &self.requests, slots).unwrap();
        let kv = match format {
            KvFormat::Sixteen => KvBuffers::Sixteen {
                k: gpu.upload(&self.k).unwrap(),
                v: gpu.upload(&self.v).unwrap(),
            },
            KvFormat::Int8 => {
                let mut scales = vec![0.0f32; 2 * slots];
                let mut bytes = [Vec::new(), Vec::new()];
                for (which, tensor) in [&self.k, &self.v].into_iter().enumerate() {
                    for (slot, row) in tensor.chunks(dim).enumerate() {
                        let row: Vec<f32> = row.iter().map(|x| x.get() as f32).collect();
                        let (row_bytes, scale) = to_bytes(&row);
                        let nan = row.iter().any(|x| x.is_nan());
                        scales[2 * slot + which] = if nan { f32::NAN } else { scale };
                        bytes[which].extend(row_bytes);
                    }
                }
                KvBuffers::Int8 {
                    k: gpu.upload(&bytes[0]).unwrap(),
                    v: gpu.upload(&bytes[1]).unwrap(),
                    scales: gpu.upload(&scales).unwrap(),
                }
            }
        };
        (cache, kv)
    }
}

/// Every case of a table that fits the kernels, in both formats; `result` compares a kernel with its twin under some masks.
pub(crate) fn table<T: Value>(
    cases: &[AttentionCase],
    result: impl Fn(&Batch<T>, KvFormat, &[HeadMask]) -> Comparison,
) {
    for (seed, case) in cases.iter().enumerate() {
        if case.head_dim > 128 {
            continue;
        }
        let batch = Batch::<T>::random(
            (case.heads, case.kv_heads, case.head_dim),
            &case.masks,
            &[(case.context, case.start, case.len)],
            case.largest_score,
            seed as u64,
        );
        check_formats(case.name, &batch, &result);
    }
}

/// A batch in both formats.
pub(crate) fn check_formats<T: Value>(
    name: &str,
    batch: &Batch<T>,
    result: impl Fn(&Batch<T>, KvFormat, &[HeadMask]) -> Comparison,
) {
    for format in FORMATS {
        let name = format!("{:?} {format:?} {name}", T::TYPE);
        let result = result(batch, format, &batch.masks);
        println!("{name}: error {:.2e}", result.max_error);
        let _ = result.assert(&name);
    }
}

/// What a row becomes in a cache of `format`: nothing changes in 16 bits, which rows have already.
pub(crate) fn kept(format: KvFormat, row: &[f32]) -> Vec<f32> {
    match format {
        KvFormat::Sixteen => row.to_vec(),
        KvFormat::Int8 => {
            let (bytes, scale) = to_bytes(row);
            from_bytes(&bytes, scale)
        }
    }
}
