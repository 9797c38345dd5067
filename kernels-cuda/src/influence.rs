//! The influence kernel's launcher: shapes checked, work cut so that its partial sums fit in a workspace.

use cudarc::driver::CudaFunction;
use moa_mask::HeadMask;

use crate::extent::{Extent, Layout, check_len};
use crate::launch::{self, Arg, Grid, Map};
use crate::source::{Kernel, KernelConfig, operand_bytes, stages};
use crate::{Buffer, CudaError, Element, Gpu, Result};

/// Warpgroups of a block, each with a tile of rows.
pub(crate) const INFLUENCE_CONSUMERS: u32 = Kernel::Influence.consumers();

/// Rows of a query tile and keys of a key tile; spans are profiled in steps of this many tokens.
pub(crate) const TILE: u32 = 64;

/// One layer's attention, one sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InfluenceShape {
    /// Query heads.
    pub heads: u32,
    /// KV heads; divides `heads`.
    pub kv_heads: u32,
    /// Tokens.
    pub len: u32,
    /// Channels of a head: a multiple of 16, at most 128.
    pub head_dim: u32,
    /// Sink tokens: a multiple of 64.
    pub sink: u32,
    /// How q, k, v and `grad_out` lie in memory.
    pub layout: Layout,
}

impl InfluenceShape {
    pub(crate) fn extent(&self, heads: u32) -> Extent {
        Extent {
            heads,
            len: self.len,
            head_dim: self.head_dim,
            layout: self.layout,
        }
    }

    pub(crate) fn check(&self) -> Result<()> {
        self.extent(self.heads).check(self.kv_heads)?;
        if !self.sink.is_multiple_of(TILE) || self.sink > 1 << 20 {
            return Err(CudaError::Shape {
                what: "sink",
                expected: "a multiple of 64",
                got: self.sink as usize,
            });
        }
        Ok(())
    }

    /// Checks q, k, v and the gradient of attention's output, and describes their tiles to the copy engine.
    pub(crate) fn tiles<T: Element>(
        &self,
        gpu: &Gpu,
        config: KernelConfig,
        [q, k, v, grad_out]: [&Buffer<T>; 4],
    ) -> Result<[Map; 4]> {
        if T::TYPE != config.element {
            return Err(CudaError::Shape {
                what: "type of the elements",
                expected: "the one that the kernel was made for",
                got: size_of::<T>(),
            });
        }
        let (queries, keys) = (self.extent(self.heads), self.extent(self.kv_heads));
        check_len("q", queries.elements(), q.len())?;
        check_len("k", keys.elements(), k.len())?;
        check_len("v", keys.elements(), v.len())?;
        check_len("grad_out", queries.elements(), grad_out.len())?;
        let stream = gpu.stream();
        Ok([
            launch::tile_map(stream, q, queries)?,
            launch::tile_map(stream, k, keys)?,
            launch::tile_map(stream, v, keys)?,
            launch::tile_map(stream, grad_out, queries)?,
        ])
    }

    /// Values of one statistic of all rows, `[heads, rows]`.
    pub fn row_values(&self) -> usize {
        self.extent(self.heads).row_values()
    }

    /// Rows of `row_dot`: `len` rounded up to a multiple of 64.
    pub fn rows(&self) -> u32 {
        self.len.next_multiple_of(TILE)
    }

    /// Query heads that share one KV head.
    pub fn gqa_group(&self) -> u32 {
        self.heads / self.kv_heads
    }

    /// Spans on a curve: bin s stands for the span 64 (s + 1).
    pub fn bins(&self) -> u32 {
        self.len.div_ceil(TILE)
    }

    /// Values in the curves, `[kv_heads][identity, absolute value, square][bins]`.
    pub fn curve_values(&self) -> usize {
        self.kv_heads as usize * 3 * self.bins() as usize
    }

    /// The span of the curves that hides what `mask` hides, by its number: the last one where it hides nothing.
    pub fn bin_of(&self, mask: HeadMask) -> Option<u32> {
        if mask.visible(self.len.saturating_sub(1)) == self.len {
            return Some(self.bins() - 1);
        }
        let span = mask.sink.checked_add(mask.window)?;
        (mask.sink == self.sink && span.is_multiple_of(TILE)).then(|| span / TILE - 1)
    }

    /// Bins before `slot` within a KV head; the kernel's function of the same name.
    fn slot_bins(&self, slot: u32) -> u64 {
        let group = u64::from(self.gqa_group());
        let (tile, member) = (u64::from(slot) / group, u64::from(slot) % group);
        group * (tile * (tile + 1) / 2) + member * (tile + 1)
    }
}

/// What the kernel reads; dimensions are written for [`Layout::HeadsFirst`].
#[derive(Debug, Clone, Copy)]
pub struct InfluenceInputs<'a, T> {
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

/// Where D, the mean of dL/dA over what a row sees now, comes from.
#[derive(Debug)]
pub enum RowDots<'a> {
    /// From elsewhere: `[heads, rows]`.
    Given(&'a Buffer<f32>),
    /// From the curves' own walk, where every mask (one for each KV head) hides what some span of the curves hides; written to `row_dot`.
    OnCurve {
        /// What the model runs under.
        masks: &'a [HeadMask],
        /// `[heads, rows]`.
        row_dot: &'a mut Buffer<f32>,
    },
}

/// Slots `first..end` (row tile and member of the group) of some KV heads: what one launch does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) first_kv_head: u32,
    pub(crate) kv_heads: u32,
    pub(crate) first_slot: u32,
    pub(crate) end_slot: u32,
}

/// Computes joint influence curves for one shape.
#[derive(Debug)]
pub struct Influence {
    shape: InfluenceShape,
    config: KernelConfig,
    influence: CudaFunction,
    dots: CudaFunction,
    reduce: CudaFunction,
    parts: Vec<Part>,
    workspace: Buffer<f32>,
}

impl Influence {
    /// Compiles the kernel for `T` and allocates a workspace of at most `workspace_bytes`, or of what a single row tile of one
    /// KV head needs if that is more. 65 MiB hold a whole layer of 32 heads at 8192 tokens in one launch.
    ///
    /// # Errors
    /// [`CudaError::Shape`], [`CudaError::Capability`], and those of compiling and allocating.
    pub fn new<T: Element>(
        gpu: &Gpu,
        shape: InfluenceShape,
        workspace_bytes: usize,
    ) -> Result<Self> {
        shape.check()?;
        let config = KernelConfig {
            head_dim: shape.head_dim,
            element: T::TYPE,
        };
        let module = gpu.module(Kernel::Influence, config)?;
        let (parts, bins) = cut(&shape, workspace_bytes as u64 / 4 / u64::from(TILE));
        let floats = usize::try_from(bins * u64::from(TILE)).map_err(|_too_large| {
            CudaError::OutOfMemory {
                doing: "allocating influence's workspace",
            }
        })?;
        Ok(Self {
            shape,
            config,
            influence: launch::function(&module, "influence", shared_bytes(shape.head_dim))?,
            dots: launch::function(&module, "influence_dots", 0)?,
            reduce: launch::function(&module, "influence_reduce", 0)?,
            parts,
            workspace: gpu.buffer(floats)?,
        })
    }

    /// Device memory that this holds beside inputs and curves.
    pub fn workspace_bytes(&self) -> usize {
        self.workspace.num_bytes()
    }

    /// The workspace, for tests that poison it.
    pub fn workspace_mut(&mut self) -> &mut Buffer<f32> {
        &mut self.workspace
    }

    /// Adds the layer's curves to `curves`, `[kv_heads][identity, absolute value, square][bins]`: bin s is the sum over rows and
    /// over the group's query heads of phi of the loss's change, to first order, when the span is 64 (s + 1). The same input gives the same
    /// bytes.
    ///
    /// # Errors
    /// [`CudaError::Length`] and the driver's.
    pub fn add<T: Element>(
        &mut self,
        gpu: &Gpu,
        inputs: &InfluenceInputs<'_, T>,
        dots: RowDots<'_>,
        curves: &mut Buffer<f64>,
    ) -> Result<()> {
        let shape = self.shape;
        let mut dots = Dots::new(gpu, &shape, dots)?;
        check_len("curves", shape.curve_values(), curves.len())?;
        let stream = gpu.stream();
        let operands = [inputs.q, inputs.k, inputs.v, inputs.grad_out];
        let maps = shape.tiles(gpu, self.config, operands)?;
        let (group, sink_tiles) = (shape.gqa_group(), shape.sink / TILE);
        for &part in &self.parts {
            launch::launch(
                stream,
                &self.influence,
                "launching influence",
                Grid {
                    blocks: (
                        (part.end_slot - part.first_slot).div_ceil(INFLUENCE_CONSUMERS),
                        part.kv_heads,
                    ),
                    threads: INFLUENCE_CONSUMERS * 128 + 32,
                    shared_bytes: shared_bytes(shape.head_dim),
                },
                &[
                    Arg::Map(maps[0]),
                    Arg::Map(maps[1]),
                    Arg::Map(maps[2]),
                    Arg::Map(maps[3]),
                    Arg::write(stream, &mut self.workspace),
                    Arg::U32(group),
                    Arg::U32(sink_tiles),
                    Arg::U32(part.first_kv_head),
                    Arg::U32(part.first_slot),
                    Arg::U32(part.end_slot),
                    Arg::F32(inputs.softmax_scale * std::f32::consts::LOG2_E),
                ],
            )?;
            let place = || {
                [
                    Arg::U32(shape.len),
                    Arg::U32(group),
                    Arg::U32(sink_tiles),
                    Arg::U32(part.first_kv_head),
                    Arg::U32(part.first_slot),
                    Arg::U32(part.end_slot),
                ]
            };
            if let Dots::OnCurve { own_bins, row_dot } = &mut dots {
                let mut args = vec![
                    Arg::read(stream, &self.workspace),
                    Arg::read(stream, own_bins),
                    Arg::write(stream, row_dot),
                ];
                args.extend(place());
                let grid = Grid {
                    blocks: (part.end_slot - part.first_slot, part.kv_heads),
                    threads: TILE,
                    shared_bytes: 0,
                };
                launch::launch(stream, &self.dots, "launching influence_dots", grid, &args)?;
            }
            let mut args = vec![
                Arg::read(stream, &self.workspace),
                Arg::read(stream, dots.row_dot()),
                Arg::write(stream, curves),
            ];
            args.extend(place());
            let grid = Grid {
                blocks: (shape.bins(), part.kv_heads),
                threads: 256,
                shared_bytes: 0,
            };
            launch::launch(
                stream,
                &self.reduce,
                "launching influence_reduce",
                grid,
                &args,
            )?;
        }
        Ok(())
    }
}

/// [`RowDots`], checked and with what the kernels need.
enum Dots<'a> {
    Given(&'a Buffer<f32>),
    OnCurve {
        own_bins: Buffer<u32>,
        row_dot: &'a mut Buffer<f32>,
    },
}

impl<'a> Dots<'a> {
    fn new(gpu: &Gpu, shape: &InfluenceShape, dots: RowDots<'a>) -> Result<Self> {
        match dots {
            RowDots::Given(row_dot) => {
                check_len("row_dot", shape.row_values(), row_dot.len())?;
                Ok(Self::Given(row_dot))
            }
            RowDots::OnCurve { masks, row_dot } => {
                check_len("row_dot", shape.row_values(), row_dot.len())?;
                check_len("masks", shape.kv_heads as usize, masks.len())?;
                let bins = masks.iter().map(|&mask| {
                    shape.bin_of(mask).ok_or(CudaError::Shape {
                        what: "a mask's window",
                        expected: "that of a span on the curve",
                        got: mask.window as usize,
                    })
                });
                Ok(Self::OnCurve {
                    own_bins: gpu.upload(&bins.collect::<Result<Vec<u32>>>()?)?,
                    row_dot,
                })
            }
        }
    }

    fn row_dot(&self) -> &Buffer<f32> {
        match self {
            Self::Given(row_dot) => row_dot,
            Self::OnCurve { row_dot, .. } => row_dot,
        }
    }
}

/// Tiles, their barriers, and room to align the tiles.
pub(crate) fn shared_bytes(head_dim: u32) -> u32 {
    let stages = stages(head_dim);
    2 * (INFLUENCE_CONSUMERS + stages) * operand_bytes(head_dim) + 16 * stages + 8 + 1024
}

/// Cuts the work into launches of at most `limit` bins where that can be, and says how many the largest has.
pub(crate) fn cut(shape: &InfluenceShape, limit: u64) -> (Vec<Part>, u64) {
    let slots = shape.gqa_group() * shape.bins();
    let whole = shape.slot_bins(slots);
    let (mut parts, mut largest) = (Vec::new(), 0);
    if whole <= limit {
        let at_once = u32::try_from(limit / whole)
            .unwrap_or(u32::MAX)
            .min(shape.kv_heads);
        // Even shares: a last launch with few heads would leave the device idle.
        let launches = shape.kv_heads.div_ceil(at_once);
        for index in 0..launches {
            let share = |i: u32| {
                u32::try_from(u64::from(shape.kv_heads) * u64::from(i) / u64::from(launches))
                    .unwrap_or(u32::MAX)
            };
            let (first, end) = (share(index), share(index + 1));
            largest = largest.max(whole * u64::from(end - first));
            parts.push(Part {
                first_kv_head: first,
                kv_heads: end - first,
                first_slot: 0,
                end_slot: slots,
            });
        }
    } else {
        for kv_head in 0..shape.kv_heads {
            let mut first = 0;
            while first < slots {
                let mut end = (first + INFLUENCE_CONSUMERS).min(slots);
                while end < slots
                    && shape.slot_bins((end + INFLUENCE_CONSUMERS).min(slots))
                        - shape.slot_bins(first)
                        <= limit
                {
                    end = (end + INFLUENCE_CONSUMERS).min(slots);
                }
                largest = largest.max(shape.slot_bins(end) - shape.slot_bins(first));
                parts.push(Part {
                    first_kv_head: kv_head,
                    kv_heads: 1,
                    first_slot: first,
                    end_slot: end,
                });
                first = end;
            }
        }
    }
    (parts, largest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(heads: u32, kv_heads: u32, len: u32) -> InfluenceShape {
        InfluenceShape {
            heads,
            kv_heads,
            len,
            head_dim: 128,
            sink: 64,
            layout: Layout::HeadsFirst,
        }
    }

    #[test]
    fn parts_cover_every_slot_once_within_the_limit() {
        for (heads, kv_heads, len) in [
            (1, 1, 1),
            (6, 2, 700),
            (9, 3, 4096),
            (32, 32, 8192),
            (28, 4, 10_000),
        ] {
            let shape = shape(heads, kv_heads, len);
            shape.check().unwrap();
            for limit in [1, 5000, 50_000, 3 << 20, u64::MAX] {
                let (parts, largest) = cut(&shape, limit);
                let slots = shape.gqa_group() * shape.bins();
                let mut seen = vec![0u8; (shape.kv_heads * slots) as usize];
                for part in &parts {
                    let need = (shape.slot_bins(part.end_slot) - shape.slot_bins(part.first_slot))
                        * u64::from(part.kv_heads);
                    assert!(need <= largest);
                    for head in part.first_kv_head..part.first_kv_head + part.kv_heads {
                        for slot in part.first_slot..part.end_slot {
                            seen[(head * slots + slot) as usize] += 1;
                        }
                    }
                }
                assert!(seen.iter().all(|&count| count == 1));
                assert!(largest <= limit.max(u64::from(INFLUENCE_CONSUMERS * shape.bins())));
            }
        }
    }

    #[test]
    fn a_layer_of_32_heads_at_8192_needs_two_launches_in_64_mib() {
        let (parts, largest) = cut(&shape(32, 32, 8192), (64 << 20) / 256);
        assert_eq!(parts.len(), 2);
        assert!(largest * 256 < 33 << 20);
    }

    #[test]
    fn a_mask_lies_on_the_curve_where_some_span_hides_as_much() {
        let shape = shape(2, 2, 300);
        let of = |sink, window| shape.bin_of(HeadMask { sink, window });
        assert_eq!(shape.bins(), 5);
        assert_eq!(of(64, 64), Some(1));
        assert_eq!(of(64, 192), Some(3));
        // Whatever sees everything has the last bin, on the grid or not.
        for (sink, window) in [(64, 256), (0, 300), (300, 1), (7, 400), (64, u32::MAX)] {
            assert_eq!(of(sink, window), Some(4), "{sink} {window}");
        }
        for (sink, window) in [(64, 1), (64, 63), (64, 65), (0, 64), (128, 128)] {
            assert_eq!(of(sink, window), None, "{sink} {window}");
        }
    }

    #[test]
    fn shapes_without_a_kernel_are_refused() {
        let good = shape(8, 2, 100);
        for bad in [
            InfluenceShape { heads: 7, ..good },
            InfluenceShape {
                kv_heads: 0,
                ..good
            },
            InfluenceShape { len: 0, ..good },
            InfluenceShape {
                head_dim: 40,
                ..good
            },
            InfluenceShape {
                head_dim: 256,
                ..good
            },
            InfluenceShape { sink: 8, ..good },
        ] {
            assert!(
                matches!(bad.check(), Err(CudaError::Shape { .. })),
                "{bad:?}"
            );
        }
    }
}
