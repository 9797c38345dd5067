//! Launchers of the statistics of attention's rows and of the influence of single entries.

use cudarc::driver::CudaFunction;
use moa_mask::HeadMask;

use crate::attention::upload_spans;
use crate::extent::check_len;
use crate::influence::{INFLUENCE_CONSUMERS, InfluenceShape, Part, TILE, cut, shared_bytes};
use crate::launch::{self, Arg, Grid, Map};
use crate::source::{Kernel, KernelConfig};
use crate::{Buffer, CudaError, Element, Gpu, Result};

/// What both passes read: q, k, v and the gradient of attention's output, as in [`InfluenceInputs`](crate::InfluenceInputs).
#[derive(Debug, Clone, Copy)]
pub struct EntryInputs<'a, T> {
    /// Queries after RoPE, `[heads, len, head_dim]`.
    pub q: &'a Buffer<T>,
    /// Keys after RoPE, `[kv_heads, len, head_dim]`.
    pub k: &'a Buffer<T>,
    /// Values, `[kv_heads, len, head_dim]`.
    pub v: &'a Buffer<T>,
    /// Gradient of the loss in the attention's output, `[heads, len, head_dim]`.
    pub grad_out: &'a Buffer<T>,
    /// What logits are multiplied by; positive.
    pub softmax_scale: f32,
}

/// Statistics of attention's rows, `[heads, rows]` each, rows = len rounded up to a multiple of 64.
#[derive(Debug)]
pub struct RowStatistics {
    /// Log-sum-exp of the visible scaled scores; infinity where there is no row.
    pub lse: Buffer<f32>,
    /// D, the mean of dL/dA over the visible keys.
    pub row_dot: Buffer<f32>,
    /// Position of the key with the largest share.
    pub top_key: Buffer<u32>,
    /// What hiding that key would cost.
    pub top_effect: Buffer<f32>,
}

/// Sums by 64 x 64 blocks, `[heads, side, side]`, side = bins; zeros after the diagonal.
#[derive(Debug)]
pub struct EntryMaps {
    /// Of magnitudes.
    pub abs: Buffer<f32>,
    /// Of effects.
    pub signed: Buffer<f32>,
}

/// Computes statistics of rows and per-entry influence for one shape under one set of masks.
#[derive(Debug)]
pub struct InfluenceEntries {
    shape: InfluenceShape,
    config: KernelConfig,
    spans: Buffer<u32>,
    rows: CudaFunction,
    entries: CudaFunction,
    shown: CudaFunction,
    maps: CudaFunction,
    parts: Vec<Part>,
    workspace: Buffer<f32>,
}

impl InfluenceEntries {
    /// Compiles the kernels for `T`, keeps `masks` (one for each KV head) and allocates a workspace of at most `workspace_bytes`, or of what a
    /// single row tile of one KV head needs if that is more.
    ///
    /// # Errors
    /// [`CudaError::Shape`], [`CudaError::Length`], [`CudaError::Capability`], and those of compiling and allocating.
    pub fn new<T: Element>(
        gpu: &Gpu,
        shape: InfluenceShape,
        masks: &[HeadMask],
        workspace_bytes: usize,
    ) -> Result<Self> {
        shape.check()?;
        check_len("masks", shape.kv_heads as usize, masks.len())?;
        let config = KernelConfig {
            head_dim: shape.head_dim,
            element: T::TYPE,
        };
        let module = gpu.module(Kernel::InfluenceEntries, config)?;
        // A bin has a float4 for each of four warps.
        let (parts, bins) = cut(&shape, workspace_bytes as u64 / 64);
        let floats = usize::try_from(bins * 16).map_err(|_too_large| CudaError::OutOfMemory {
            doing: "allocating influence's workspace",
        })?;
        let bytes = shared_bytes(shape.head_dim);
        Ok(Self {
            shape,
            config,
            spans: upload_spans(gpu, masks)?,
            rows: launch::function(&module, "influence_rows", bytes)?,
            entries: launch::function(&module, "influence_entries", bytes)?,
            shown: launch::function(&module, "influence_shown", 0)?,
            maps: launch::function(&module, "influence_maps", 0)?,
            parts,
            workspace: gpu.buffer(floats)?,
        })
    }

    /// Device memory that this holds beside inputs and results.
    pub fn workspace_bytes(&self) -> usize {
        self.workspace.num_bytes()
    }

    /// The workspace, for tests that poison it.
    pub fn workspace_mut(&mut self) -> &mut Buffer<f32> {
        &mut self.workspace
    }

    /// Statistics of every row under the masks.
    ///
    /// # Errors
    /// [`CudaError::Length`] and the driver's.
    pub fn rows<T: Element>(
        &self,
        gpu: &Gpu,
        inputs: &EntryInputs<'_, T>,
    ) -> Result<RowStatistics> {
        let values = self.shape.row_values();
        let mut statistics = RowStatistics {
            lse: gpu.buffer(values)?,
            row_dot: gpu.buffer(values)?,
            top_key: gpu.buffer(values)?,
            top_effect: gpu.buffer(values)?,
        };
        let stream = gpu.stream();
        let [q, k, v, grad_out] = self.maps_of(gpu, inputs)?;
        let group = self.shape.gqa_group();
        launch::launch(
            stream,
            &self.rows,
            "launching influence_rows",
            self.grid(group * self.shape.bins(), self.shape.kv_heads),
            &[
                Arg::Map(q),
                Arg::Map(k),
                Arg::Map(v),
                Arg::Map(grad_out),
                Arg::read(stream, &self.spans),
                Arg::write(stream, &mut statistics.lse),
                Arg::write(stream, &mut statistics.row_dot),
                Arg::write(stream, &mut statistics.top_key),
                Arg::write(stream, &mut statistics.top_effect),
                Arg::U32(self.shape.len),
                Arg::U32(group),
                Arg::F32(inputs.softmax_scale * std::f32::consts::LOG2_E),
            ],
        )?;
        Ok(statistics)
    }

    /// Adds to `shown`, `[kv_heads][bins]`, the magnitudes of the entries that each span is the first to show, over rows and the group's query
    /// heads, and writes the blocks of `maps`. Bin s is the span 64 (s + 1); a span's cost is the sum over all later bins.
    ///
    /// # Errors
    /// [`CudaError::Length`] and the driver's.
    pub fn add<T: Element>(
        &mut self,
        gpu: &Gpu,
        inputs: &EntryInputs<'_, T>,
        statistics: &RowStatistics,
        shown: &mut Buffer<f64>,
        mut maps: Option<&mut EntryMaps>,
    ) -> Result<()> {
        let shape = self.shape;
        let (bins, group) = (shape.bins(), shape.gqa_group());
        let values = shape.row_values();
        check_len("lse", values, statistics.lse.len())?;
        check_len("row_dot", values, statistics.row_dot.len())?;
        check_len("top_key", values, statistics.top_key.len())?;
        check_len("top_effect", values, statistics.top_effect.len())?;
        check_len(
            "shown",
            shape.kv_heads as usize * bins as usize,
            shown.len(),
        )?;
        if let Some(maps) = &maps {
            let cells = shape.heads as usize * bins as usize * bins as usize;
            check_len("the map of magnitudes", cells, maps.abs.len())?;
            check_len("the map of effects", cells, maps.signed.len())?;
        }
        let tensors = self.maps_of(gpu, inputs)?;
        let stream = gpu.stream();
        for &part in &self.parts {
            let slots = part.end_slot - part.first_slot;
            let grid = self.grid(slots, part.kv_heads);
            let place = [
                Arg::U32(part.first_kv_head),
                Arg::U32(part.first_slot),
                Arg::U32(part.end_slot),
            ];
            let mut args: Vec<Arg<'_>> = tensors.into_iter().map(Arg::Map).collect();
            args.extend([
                Arg::read(stream, &self.spans),
                Arg::read(stream, &statistics.lse),
                Arg::read(stream, &statistics.row_dot),
                Arg::read(stream, &statistics.top_key),
                Arg::read(stream, &statistics.top_effect),
                Arg::write(stream, &mut self.workspace),
                Arg::U32(shape.len),
                Arg::U32(group),
            ]);
            args.extend(place);
            args.push(Arg::F32(inputs.softmax_scale * std::f32::consts::LOG2_E));
            launch::launch(
                stream,
                &self.entries,
                "launching influence_entries",
                grid,
                &args,
            )?;
            launch::launch(
                stream,
                &self.shown,
                "launching influence_shown",
                Grid {
                    blocks: (bins.div_ceil(32), part.kv_heads),
                    threads: 256,
                    shared_bytes: 0,
                },
                &[
                    Arg::read(stream, &self.workspace),
                    Arg::write(stream, shown),
                    Arg::U32(bins),
                    Arg::U32(group),
                    Arg::U32(shape.sink / TILE),
                    Arg::U32(part.first_kv_head),
                    Arg::U32(part.first_slot),
                    Arg::U32(part.end_slot),
                ],
            )?;
            if let Some(maps) = &mut maps {
                launch::launch(
                    stream,
                    &self.maps,
                    "launching influence_maps",
                    Grid {
                        blocks: (slots, part.kv_heads),
                        threads: 128,
                        shared_bytes: 0,
                    },
                    &[
                        Arg::read(stream, &self.workspace),
                        Arg::write(stream, &mut maps.abs),
                        Arg::write(stream, &mut maps.signed),
                        Arg::U32(bins),
                        Arg::U32(group),
                        Arg::U32(part.first_kv_head),
                        Arg::U32(part.first_slot),
                        Arg::U32(part.end_slot),
                    ],
                )?;
            }
        }
        Ok(())
    }

    fn grid(&self, slots: u32, kv_heads: u32) -> Grid {
        Grid {
            blocks: (slots.div_ceil(INFLUENCE_CONSUMERS), kv_heads),
            threads: INFLUENCE_CONSUMERS * 128 + 32,
            shared_bytes: shared_bytes(self.shape.head_dim),
        }
    }

    /// Checks the inputs and describes them.
    fn maps_of<T: Element>(&self, gpu: &Gpu, inputs: &EntryInputs<'_, T>) -> Result<[Map; 4]> {
        let operands = [inputs.q, inputs.k, inputs.v, inputs.grad_out];
        self.shape.tiles(gpu, self.config, operands)
    }
}
