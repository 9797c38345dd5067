//! Random layers and the f64 definition of joint influence, for the tests and the bench. Plain loops over rows, no
//! tiles; deliberately no clever numerics beyond the row maximum, which f64 makes safe.

use half::{bf16, f16};
use moa_kernels::{Element, ElementType, InfluenceShape, Layout};
use moa_mask::HeadMask;

/// 16-bit values that tests make from f32 and read back exactly.
pub(crate) trait Value: Element + Send + Sync {
    /// The largest relative error of one rounding to the type: half a unit in the last place.
    const STEP: f64 = match Self::TYPE {
        ElementType::Bf16 => 1.0 / 256.0,
        ElementType::F16 => 1.0 / 2048.0,
    };
    fn of(x: f32) -> Self;
    fn get(self) -> f64;
}

impl Value for bf16 {
    fn of(x: f32) -> Self {
        Self::from_f32(x)
    }
    fn get(self) -> f64 {
        self.to_f64()
    }
}

impl Value for f16 {
    fn of(x: f32) -> Self {
        Self::from_f32(x)
    }
    fn get(self) -> f64 {
        self.to_f64()
    }
}

/// Reproducible values, about normal.
#[derive(Debug, Clone)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Mean 0, variance 1: the sum of four uniform values.
    pub(crate) fn normal(&mut self) -> f32 {
        let bits = self.bits();
        let sum: f32 = (0..4)
            .map(|i| f32::from(u16::try_from(bits >> (16 * i) & 0xFFFF).unwrap()) / 65536.0 - 0.5)
            .sum();
        sum * 3f32.sqrt()
    }

    pub(crate) fn values<T: Value>(&mut self, len: usize, scale: f32) -> Vec<T> {
        (0..len).map(|_| T::of(self.normal() * scale)).collect()
    }
}

/// A layer's shape; its layout follows the length, so that cases of even and odd lengths meet both.
pub(crate) fn shape(
    heads: u32,
    kv_heads: u32,
    len: u32,
    head_dim: u32,
    sink: u32,
) -> InfluenceShape {
    InfluenceShape {
        heads,
        kv_heads,
        len,
        head_dim,
        sink,
        layout: if len.is_multiple_of(2) {
            Layout::HeadsFirst
        } else {
            Layout::TokensFirst
        },
    }
}

/// One layer's inputs on the host.
#[derive(Debug, Clone)]
pub(crate) struct Layer<T> {
    pub(crate) shape: InfluenceShape,
    pub(crate) q: Vec<T>,
    pub(crate) k: Vec<T>,
    pub(crate) v: Vec<T>,
    pub(crate) grad_out: Vec<T>,
    pub(crate) row_dot: Vec<f32>,
    pub(crate) softmax_scale: f32,
}

impl<T: Value> Layer<T> {
    /// Random tensors, logits of about `logits`; D is the dense output's.
    pub(crate) fn random(shape: InfluenceShape, logits: f32, seed: u64) -> Self {
        let mut random = Random(seed);
        let (rows, dim) = ((shape.heads * shape.len) as usize, shape.head_dim as usize);
        let kv_rows = (shape.kv_heads * shape.len) as usize;
        let mut layer = Self {
            shape,
            q: random.values(rows * dim, logits),
            k: random.values(kv_rows * dim, 1.0),
            v: random.values(kv_rows * dim, 1.0),
            grad_out: random.values(rows * dim, 0.1),
            row_dot: Vec::new(),
            softmax_scale: 1.0 / (shape.head_dim as f32).sqrt(),
        };
        layer.fill_row_dot();
        layer
    }

    /// Sets D to what the dense attention gives.
    pub(crate) fn fill_row_dot(&mut self) {
        self.fill_row_dot_under(&vec![HeadMask::DENSE; self.shape.kv_heads as usize]);
    }

    /// Sets D to what attention under `masks`, one for each KV head, gives.
    pub(crate) fn fill_row_dot_under(&mut self, masks: &[HeadMask]) {
        let len = self.shape.len as usize;
        let rows = parallel((self.shape.heads * self.shape.len) as usize, |row| {
            let (p, g) = self.row(row);
            let mask = masks[row / len / self.shape.gqa_group() as usize];
            let (mut mass, mut grad) = (0.0, 0.0);
            for (key, (p, g)) in p.iter().zip(&g).enumerate() {
                if mask.attends((row % len) as u32, key as u32) {
                    mass += p;
                    grad += p * g;
                }
            }
            grad / mass
        });
        self.row_dot = rows.iter().map(|&d| d as f32).collect();
    }

    /// D with its rows padded to a multiple of 64, as kernels read it; NaN where there is no row.
    pub(crate) fn padded_row_dot(&self) -> Vec<f32> {
        let len = self.shape.len as usize;
        let mut padded = vec![f32::NAN; self.shape.heads as usize * self.shape.rows() as usize];
        for (row, &dot) in self.row_dot.iter().enumerate() {
            padded[row / len * self.shape.rows() as usize + row % len] = dot;
        }
        padded
    }

    /// A tensor of `heads` heads as its shape's layout has it.
    pub(crate) fn laid_out(&self, tensor: &[T], heads: u32) -> Vec<T> {
        if self.shape.layout == Layout::HeadsFirst {
            return tensor.to_vec();
        }
        let (len, dim) = (self.shape.len as usize, self.shape.head_dim as usize);
        let heads = heads as usize;
        (0..tensor.len())
            .map(|i| {
                let (row, channel) = (i / dim, i % dim);
                tensor[((row % heads) * len + row / heads) * dim + channel]
            })
            .collect()
    }

    /// exp(logit - largest) and g = `grad_out` v^T over the causal keys of a row (query head times len plus position).
    fn row(&self, row: usize) -> (Vec<f64>, Vec<f64>) {
        let (len, dim) = (self.shape.len as usize, self.shape.head_dim as usize);
        let (head, position) = (row / len, row % len);
        let kv_head = head / self.shape.gqa_group() as usize;
        let of = |tensor: &[T], row: usize| -> Vec<f64> {
            tensor[row * dim..][..dim].iter().map(|x| x.get()).collect()
        };
        let (q, grad_out) = (of(&self.q, row), of(&self.grad_out, row));
        let (mut logits, mut g) = (Vec::new(), Vec::new());
        for key in 0..=position {
            let at = (kv_head * len + key) * dim;
            let (mut s, mut e) = (0.0, 0.0);
            for c in 0..dim {
                s += q[c] * self.k[at + c].get();
                e += grad_out[c] * self.v[at + c].get();
            }
            logits.push(s * f64::from(self.softmax_scale));
            g.push(e);
        }
        let top = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        (logits.iter().map(|s| (s - top).exp()).collect(), g)
    }

    /// The curves, `[kv_heads][identity, absolute value, square][bins]`, with windows `off` tokens wider than they should be.
    pub(crate) fn curves(&self, off: i64) -> Vec<f64> {
        let shape = self.shape;
        let (len, bins, sink) = (
            shape.len as usize,
            shape.bins() as usize,
            shape.sink as usize,
        );
        let effects = parallel((shape.heads * shape.len) as usize, |row| {
            let (p, g) = self.row(row);
            let position = row % len;
            let mut effects = vec![0.0; bins];
            let (mut mass, mut grad) = (0.0, 0.0);
            for key in 0..=position.min(sink.wrapping_sub(1)).min(position) {
                if key < sink {
                    mass += p[key];
                    grad += p[key] * g[key];
                }
            }
            // The first key to the right of what has been taken, walking left.
            let mut next = position + 1;
            for (bin, effect) in effects.iter_mut().enumerate() {
                let span = 64 * (bin + 1);
                let window = i64::try_from(span.saturating_sub(sink).max(1)).unwrap() + off;
                let window = usize::try_from(window.max(1)).unwrap();
                while next > sink && position + 1 - (next - 1) <= window {
                    next -= 1;
                    mass += p[next];
                    grad += p[next] * g[next];
                }
                *effect = grad / mass - f64::from(self.row_dot[row]);
            }
            effects
        });
        let mut curves = vec![0.0; shape.curve_values()];
        for (row, effects) in effects.iter().enumerate() {
            let kv_head = row / len / shape.gqa_group() as usize;
            for (bin, &effect) in effects.iter().enumerate() {
                for (phi, value) in [effect, effect.abs(), effect * effect]
                    .into_iter()
                    .enumerate()
                {
                    curves[(kv_head * 3 + phi) * bins + bin] += value;
                }
            }
        }
        curves
    }
}

/// `f` of 0..count on all cores, in order.
fn parallel<R: Send>(count: usize, f: impl Fn(usize) -> R + Sync) -> Vec<R> {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut results: Vec<Vec<(usize, R)>> = std::thread::scope(|scope| {
        let f = &f;
        let handles: Vec<_> = (0..threads)
            .map(|thread| {
                scope.spawn(move || {
                    (thread..count)
                        .step_by(threads)
                        .map(|i| (i, f(i)))
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        handles.into_iter().map(|h| h.join().unwrap()).collect()
    });
    let mut all: Vec<(usize, R)> = results.drain(..).flatten().collect();
    all.sort_by_key(|(i, _)| *i);
    all.into_iter().map(|(_, r)| r).collect()
}
