//! Attention over whole texts and over caches, its gradients, and the costs of spans.
//!
//! A chunk of a session reads its past through a linear copy of the visible keys: simple and exact, not fast. Grids of masks and blocks of
//! maps are those of the kernels, 64 tokens; others are refused with the hint to use the CPU.

use std::fmt;

use moa_kernels::{
    Attention, AttentionGradients as GradientsOut, AttentionShape as KernelShape, Buffer, Cache,
    CacheSlots, CudaError, Element, EntryInputs, EntryMaps, HeadShape, Influence, InfluenceEntries,
    InfluenceInputs, InfluenceShape, Layout, RequestSlots, Result, RowDots,
};
use moa_lm::{
    Attended, AttentionBackward, AttentionGradients, AttentionShape, KvCache, LayerInfluence,
    Projected,
};
use moa_mask::{HeadMask, MaskGrid};

use crate::device::{Cuda, Values};
use crate::stages::Stage;

/// Step of spans and side of blocks that the kernels know.
const BLOCK: u32 = 64;
/// Room for the means of one launch of influence: a layer of 32 heads at 8192 tokens at once.
const WORKSPACE_BYTES: usize = 66 << 20;

/// A size that must be a whole number of 32 bits.
fn size(what: &'static str, value: usize) -> Result<u32> {
    u32::try_from(value).map_err(|_too_large| CudaError::Shape {
        what,
        expected: "less than 2^32",
        got: value,
    })
}

fn kernel_shape(shape: AttentionShape, q_len: usize, q_start: u32) -> Result<KernelShape> {
    Ok(KernelShape {
        heads: size("heads", shape.heads)?,
        kv_heads: size("kv_heads", shape.kv_heads)?,
        q_len: size("the number of queries", q_len)?,
        q_start,
        head_dim: size("head_dim", shape.head_dim)?,
        layout: Layout::TokensFirst,
    })
}

/// What the model's backward wants of a layer, checked and in the kernels' terms.
struct Layer<'a, T> {
    shape: InfluenceShape,
    masks: &'a [HeadMask],
    q: &'a Buffer<T>,
    k: &'a Buffer<T>,
    v: &'a Buffer<T>,
    d_o: &'a Buffer<T>,
    softmax_scale: f32,
    per_entry: bool,
    maps: bool,
}

impl<'a, T: Element> Layer<'a, T> {
    fn of(inputs: &AttentionBackward<'a, Values<T>>) -> Result<Self> {
        let (grid, shape) = (inputs.grid, inputs.shape);
        check_grid(grid, inputs.blocks)?;
        let q = inputs.projected.q.working()?;
        Ok(Self {
            shape: InfluenceShape {
                heads: size("heads", shape.heads)?,
                kv_heads: size("kv_heads", shape.kv_heads)?,
                len: size("the text's length", q.len() / shape.q_dim())?,
                head_dim: size("head_dim", shape.head_dim)?,
                sink: grid.sink(),
                layout: Layout::TokensFirst,
            },
            masks: inputs.masks,
            q,
            k: inputs.projected.k.working()?,
            v: inputs.projected.v.working()?,
            d_o: inputs.d_o.working()?,
            softmax_scale: shape.softmax_scale(),
            per_entry: inputs.per_entry || inputs.blocks.is_some(),
            maps: inputs.blocks.is_some(),
        })
    }

    fn entry_inputs(&self) -> EntryInputs<'_, T> {
        EntryInputs {
            q: self.q,
            k: self.k,
            v: self.v,
            grad_out: self.d_o,
            softmax_scale: self.softmax_scale,
        }
    }
}

/// Refuses grids that the kernels do not know.
fn check_grid(grid: MaskGrid, blocks: Option<usize>) -> Result<()> {
    let refused = |what, expected, got| {
        Err(CudaError::Shape {
            what,
            expected,
            got,
        })
    };
    if grid.block() != BLOCK {
        return refused("the block of spans", "64 on a GPU", grid.block() as usize);
    }
    if !grid.sink().is_multiple_of(BLOCK) {
        return refused(
            "the sink",
            "a multiple of 64 on a GPU",
            grid.sink() as usize,
        );
    }
    match blocks {
        Some(side) if side != BLOCK as usize => {
            refused("the side of influence blocks", "64 on a GPU", side)
        }
        _ => Ok(()),
    }
}

/// A layer's cost of spans, still on the device.
struct Costs {
    joint: Buffer<f64>,
    shown: Option<Buffer<f64>>,
    maps: Option<EntryMaps>,
}

impl<T: Element + fmt::Debug + Send + Sync> Cuda<T> {
    pub(crate) fn attend(
        &self,
        shape: AttentionShape,
        projected: &Projected<'_, Values<T>>,
        masks: &[HeadMask],
        cache: Option<&KvCache<Values<T>>>,
    ) -> moa_lm::Result<Attended<Values<T>>> {
        self.run(Stage::Attention, || {
            let gpu = &*self.gpu;
            let q = projected.q.working()?;
            let (k, v) = (projected.k.working()?, projected.v.working()?);
            let past = match cache {
                Some(cache) if projected.start > 0 => {
                    Some(self.linear(shape, (k, v), projected.start, masks, cache)?)
                }
                _ => None,
            };
            let (k, v) = match &past {
                Some((k, v)) => (k, v),
                None => (k, v),
            };
            let sizes = kernel_shape(shape, q.len() / shape.q_dim(), projected.start)?;
            let attention = Attention::new::<T>(gpu, sizes, masks)?;
            let (mut o, mut lse) = (gpu.buffer(q.len())?, gpu.buffer(sizes.row_values())?);
            attention.forward(gpu, q, k, v, shape.softmax_scale(), &mut o, &mut lse)?;
            Ok(Attended {
                o: Values::Working(o),
                lse: Values::Full(lse),
            })
        })
    }

    /// Keys and values by position, from the cache and from a run.
    fn linear(
        &self,
        shape: AttentionShape,
        (k, v): (&Buffer<T>, &Buffer<T>),
        start: u32,
        masks: &[HeadMask],
        cache: &KvCache<Values<T>>,
    ) -> Result<(Buffer<T>, Buffer<T>)> {
        let slots = self.slots(shape, masks, cache)?;
        let values = k.len() + start as usize * shape.kv_dim();
        let mut out = (self.gpu.buffer(values)?, self.gpu.buffer(values)?);
        let kept = (cache.k.working()?, cache.v.working()?);
        let (k_out, v_out) = (&mut out.0, &mut out.1);
        slots.linear(&self.gpu, (k, v), start, kept, (k_out, v_out))?;
        Ok(out)
    }

    fn slots(
        &self,
        shape: AttentionShape,
        masks: &[HeadMask],
        cache: &KvCache<Values<T>>,
    ) -> Result<Cache<T>> {
        let heads = masks
            .iter()
            .zip(&cache.layouts)
            .zip(&cache.slot_offsets)
            .map(|((&mask, &layout), &offset)| Ok((mask, layout, size("a slot", offset)?)))
            .collect::<Result<Vec<_>>>()?;
        let sizes = HeadShape {
            heads: size("heads", shape.heads)?,
            kv_heads: size("kv_heads", shape.kv_heads)?,
            head_dim: size("head_dim", shape.head_dim)?,
        };
        let slots = cache.k.working()?.len() / shape.head_dim;
        let slots = CacheSlots::new(&self.gpu, sizes, &[RequestSlots { heads }], slots)?;
        Cache::new(&self.gpu, slots)
    }

    pub(crate) fn keep_keys(
        &self,
        shape: AttentionShape,
        projected: &Projected<'_, Values<T>>,
        cache: &mut KvCache<Values<T>>,
    ) -> moa_lm::Result<()> {
        self.run(Stage::Attention, || {
            // Which slot a key takes does not depend on who sees it.
            let masks = vec![HeadMask::DENSE; shape.kv_heads];
            let slots = self.slots(shape, &masks, cache)?;
            let starts = self.gpu.upload(&[projected.start])?;
            let run = (projected.k.working()?, projected.v.working()?);
            let kept = (cache.k.working_mut()?, cache.v.working_mut()?);
            slots.commit(&self.gpu, run, &starts, kept)
        })
    }

    pub(crate) fn attend_backward(
        &self,
        inputs: &AttentionBackward<'_, Values<T>>,
    ) -> moa_lm::Result<AttentionGradients<Values<T>>> {
        let (row_dot, costs) = self.run(Stage::Influence, || {
            let layer = Layer::of(inputs)?;
            self.costs(&layer)
        })?;
        let [d_q, d_k, d_v] = self.run(Stage::AttentionBackward, || {
            self.gradients(inputs, &row_dot)
        })?;
        drop(row_dot);
        let influence = self.run(Stage::Copies, || self.read(inputs, &costs))?;
        Ok(AttentionGradients {
            d_q: Values::Working(d_q),
            d_k: Values::Working(d_k),
            d_v: Values::Working(d_v),
            influence,
        })
    }

    /// D, joint curves and, where they are wanted, per-entry sums. D is that of the masked rows, in f32 from scores that were never rounded: the
    /// joint curves' own walk gives it where the masks lie on the curves, as a plan's do. Other masks, and per-entry sums, need a pass that
    /// looks for it.
    fn costs(&self, layer: &Layer<'_, T>) -> Result<(Buffer<f32>, Costs)> {
        let (gpu, shape) = (&*self.gpu, layer.shape);
        let on_curve = layer.masks.iter().all(|&mask| shape.bin_of(mask).is_some());
        let (mut statistics, mut shown, mut maps) = (None, None, None);
        if layer.per_entry || !on_curve {
            let inputs = layer.entry_inputs();
            let mut entries = InfluenceEntries::new::<T>(gpu, shape, layer.masks, WORKSPACE_BYTES)?;
            let rows = entries.rows(gpu, &inputs)?;
            let bins = shape.bins() as usize;
            if layer.maps {
                let cells = shape.heads as usize * bins * bins;
                maps = Some(EntryMaps {
                    abs: gpu.zeros(cells)?,
                    signed: gpu.zeros(cells)?,
                });
            }
            if layer.per_entry {
                let mut sums = gpu.zeros(shape.kv_heads as usize * bins)?;
                entries.add(gpu, &inputs, &rows, &mut sums, maps.as_mut())?;
                shown = Some(sums);
            }
            statistics = Some(rows);
        }
        let inputs = InfluenceInputs {
            q: layer.q,
            k: layer.k,
            v: layer.v,
            grad_out: layer.d_o,
            softmax_scale: layer.softmax_scale,
        };
        // The same D whether per-entry sums are wanted or not.
        let mut row_dot = match statistics {
            Some(rows) if !on_curve => rows.row_dot,
            _ => gpu.buffer(shape.row_values())?,
        };
        let dots = if on_curve {
            RowDots::OnCurve {
                masks: layer.masks,
                row_dot: &mut row_dot,
            }
        } else {
            RowDots::Given(&row_dot)
        };
        let mut joint = gpu.zeros(shape.curve_values())?;
        Influence::new::<T>(gpu, shape, WORKSPACE_BYTES)?.add(gpu, &inputs, dots, &mut joint)?;
        Ok((row_dot, Costs { joint, shown, maps }))
    }

    fn gradients(
        &self,
        inputs: &AttentionBackward<'_, Values<T>>,
        row_dot: &Buffer<f32>,
    ) -> Result<[Buffer<T>; 3]> {
        let gpu = &*self.gpu;
        let (q, k) = (inputs.projected.q.working()?, inputs.projected.k.working()?);
        let (v, d_o) = (inputs.projected.v.working()?, inputs.d_o.working()?);
        let sizes = kernel_shape(inputs.shape, q.len() / inputs.shape.q_dim(), 0)?;
        let attention = Attention::new::<T>(gpu, sizes, inputs.masks)?;
        let mut d_q = gpu.buffer(q.len())?;
        let (mut d_k, mut d_v) = (gpu.buffer(k.len())?, gpu.buffer(v.len())?);
        let out = GradientsOut {
            q: &mut d_q,
            k: &mut d_k,
            v: &mut d_v,
        };
        let lse = inputs.lse.full()?;
        let scale = inputs.shape.softmax_scale();
        attention.backward(gpu, q, k, v, d_o, lse, row_dot, scale, out)?;
        Ok([d_q, d_k, d_v])
    }

    /// Brings a layer's costs to the host, as [`LayerInfluence`] has them.
    fn read(
        &self,
        inputs: &AttentionBackward<'_, Values<T>>,
        costs: &Costs,
    ) -> Result<LayerInfluence> {
        let joint = self.gpu.download(&costs.joint)?;
        let bins = joint.len() / (3 * inputs.shape.kv_heads);
        let mut per_entry = match &costs.shown {
            None => Vec::new(),
            Some(shown) => self.gpu.download(shown)?,
        };
        for curve in per_entry.chunks_exact_mut(bins) {
            // What a span hides: all that later spans are the first to show.
            let mut hidden = 0.0;
            for bin in curve.iter_mut().rev() {
                (*bin, hidden) = (hidden, hidden + *bin);
            }
        }
        let phi = |index: usize| -> Vec<f64> {
            let of_heads = joint.chunks_exact(bins).skip(index).step_by(3);
            of_heads.flatten().copied().collect()
        };
        let (signed, abs, square) = (phi(0), phi(1), phi(2));
        let positive = signed
            .iter()
            .zip(&abs)
            .map(|(signed, abs)| (signed + abs) / 2.0)
            .collect();
        let (abs_map, signed_map) = match &costs.maps {
            None => (Vec::new(), Vec::new()),
            Some(maps) => (
                self.gpu.download(&maps.abs)?,
                self.gpu.download(&maps.signed)?,
            ),
        };
        let wide = |map: Vec<f32>| map.into_iter().map(f64::from).collect();
        Ok(LayerInfluence {
            curves: [per_entry, abs, signed, positive, square],
            abs: wide(abs_map),
            signed: wide(signed_map),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grids_without_a_kernel_are_refused_with_a_hint() {
        let grid = |sink, block| MaskGrid::new(sink, block).unwrap();
        check_grid(grid(64, 64), None).unwrap();
        check_grid(grid(0, 64), Some(64)).unwrap();
        for (grid, blocks) in [
            (grid(8, 8), None),
            (grid(128, 128), None),
            (grid(64, 64), Some(16)),
        ] {
            let refused = check_grid(grid, blocks).unwrap_err();
            assert!(refused.hint().contains("--device cpu"), "{refused}");
        }
    }
}
