//! Weights on the device: filled chunk by chunk with bytes whose hash has been checked, and bound as kernels read them.
//! Which buffer a byte lies in is `weight_layout`'s business.

use moa_format::{ALIGN, CHUNK_BYTES, DType, Piece, PieceLayout, Shard, TensorEntry};
use moa_mask::abi::PLACE_BYTES;
use moa_shaders::WeightType;

use crate::buffers::Allocator;
use crate::error::{EngineError, Result};
use crate::gpu::Gpu;
use crate::setup::{Setup, weight_type};
use crate::weight_layout::WeightLayout;

/// The weights' buffers, and which chunks have arrived.
#[derive(Debug)]
pub(crate) struct WeightBuffers {
    shards: Vec<Shard>,
    layout: WeightLayout,
    buffers: Vec<wgpu::Buffer>,
    arrived: Vec<Vec<bool>>,
}

/// Consecutive rows of a weight matrix, as kernels bind them.
#[derive(Debug, Clone)]
pub(crate) struct BoundPiece<'a> {
    pub(crate) weight: WeightType,
    pub(crate) row_offset: u32,
    pub(crate) rows: u32,
    pub(crate) cols: u32,
    pub(crate) values: wgpu::BufferBinding<'a>,
    pub(crate) scales: Option<wgpu::BufferBinding<'a>>,
}

/// Part of a weight buffer, as fused kernels bind it: several tensors, found by their places.
#[derive(Debug, Clone)]
pub(crate) struct Window<'a> {
    pub(crate) binding: wgpu::BufferBinding<'a>,
    first: u64,
}

/// Pieces of one matrix that follow each other in one window, all but the last of the same size.
#[derive(Debug, Clone)]
pub(crate) struct Run<'a> {
    pub(crate) window: Window<'a>,
    pub(crate) weight: WeightType,
    pub(crate) row_offset: u32,
    pub(crate) rows: u32,
    pub(crate) cols: u32,
    pub(crate) piece_rows: u32,
    pub(crate) piece_step: u32,
    pub(crate) scales_step: u32,
    pub(crate) last_scales_step: u32,
}

/// Places of one piece in a window.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Places {
    pub(crate) values: u32,
    pub(crate) scales: u32,
}

fn places(bytes: u64) -> u32 {
    u32::try_from(bytes / u64::from(PLACE_BYTES)).unwrap_or(u32::MAX)
}

impl WeightBuffers {
    /// With bindings of `most` bytes at most.
    pub(crate) fn new(allocator: &mut Allocator<'_>, setup: &Setup, most: u64) -> Self {
        let manifest = setup.manifest();
        let shards = manifest.weights.shards.clone();
        let layout = WeightLayout::of(manifest, most);
        let buffers = (0..)
            .zip(layout.buffer_bytes())
            .map(|(index, bytes): (u32, u64)| {
                allocator.storage("weights", &format!("weights.{index}"), bytes)
            })
            .collect();
        let arrived = shards
            .iter()
            .map(|shard| vec![false; shard.chunk_sha256.len()])
            .collect();
        Self {
            shards,
            layout,
            buffers,
            arrived,
        }
    }

    /// Checks one whole chunk and sends it to the device. Each chunk once, in any order.
    pub(crate) fn write(
        &mut self,
        gpu: &Gpu,
        shard: usize,
        offset: u64,
        bytes: &[u8],
    ) -> Result<()> {
        let chunk = self.place(shard, offset)?;
        self.shards[shard]
            .check_chunk(chunk, bytes)
            .map_err(|source| EngineError::Damaged { source })?;
        let mut rest = bytes;
        for (buffer, at, length) in self.chunk_places(shard, offset)? {
            let (now, later) = rest.split_at(usize::try_from(length).unwrap_or(rest.len()));
            gpu.queue.write_buffer(&self.buffers[buffer], at, now);
            rest = later;
        }
        // Staging memory is given back as soon as the copy is done, instead of at the first dispatch.
        gpu.queue.submit([]);
        self.arrived[shard][chunk] = true;
        gpu.check()
    }

    /// Where a chunk lies: buffer, offset in it, bytes; two places where a buffer ends within the chunk.
    pub(crate) fn chunk_places(&self, shard: usize, offset: u64) -> Result<Vec<(usize, u64, u64)>> {
        self.place(shard, offset)?;
        let end = offset + u64::from(CHUNK_BYTES).min(u64::from(self.shards[shard].bytes) - offset);
        let base = self.layout.shard_base(shard);
        let mut places = Vec::new();
        let mut byte = base + offset;
        while byte < base + end {
            let (buffer, at) = self.layout.locate(byte);
            let length = (base + end).min(self.layout.end_of(buffer)) - byte;
            places.push((buffer, at, length));
            byte += length;
        }
        Ok(places)
    }

    /// Takes note of a chunk that somebody else has checked and written.
    pub(crate) fn accept(&mut self, shard: usize, offset: u64) -> Result<()> {
        let chunk = self.place(shard, offset)?;
        self.arrived[shard][chunk] = true;
        Ok(())
    }

    /// Which chunk of a shard begins at `offset`; an error where none does, or where it is there already.
    fn place(&self, shard: usize, offset: u64) -> Result<usize> {
        let bad = |reason| EngineError::BadChunk {
            shard,
            offset,
            reason,
        };
        let arrived = self
            .arrived
            .get(shard)
            .ok_or_else(|| bad("there is no such shard"))?;
        if !offset.is_multiple_of(u64::from(CHUNK_BYTES)) {
            return Err(bad("the offset is not a multiple of the chunk size"));
        }
        let chunk = usize::try_from(offset / u64::from(CHUNK_BYTES)).unwrap_or(usize::MAX);
        match arrived.get(chunk) {
            None => Err(bad("the shard ends before it")),
            Some(true) => Err(bad("it was written before")),
            Some(false) => Ok(chunk),
        }
    }

    /// Fails while chunks are missing.
    pub(crate) fn check_complete(&self) -> Result<()> {
        let chunks = self.arrived.iter().map(Vec::len).sum();
        let missing = self
            .arrived
            .iter()
            .flatten()
            .filter(|&&arrived| !arrived)
            .count();
        if missing > 0 {
            return Err(EngineError::NotLoaded { missing, chunks });
        }
        Ok(())
    }

    /// The pieces of a matrix, values and scales apart.
    pub(crate) fn pieces(&self, tensor: &TensorEntry) -> Result<Vec<BoundPiece<'_>>> {
        tensor
            .row_ranges()
            .map(|(rows, piece)| {
                let layout = piece_layout(tensor, piece)?;
                let (buffer, at) = self.layout.locate(self.layout.base(piece));
                let part = |offset: u64, bytes: u64| wgpu::BufferBinding {
                    buffer: &self.buffers[buffer],
                    offset: at + offset,
                    size: wgpu::BufferSize::new(bytes),
                };
                Ok(BoundPiece {
                    weight: weight_type(tensor.dtype),
                    row_offset: rows.start,
                    rows: piece.rows,
                    cols: tensor.cols,
                    values: part(0, layout.values_bytes),
                    scales: (layout.scales_bytes > 0)
                        .then(|| part(layout.scales_offset, layout.scales_bytes)),
                })
            })
            .collect()
    }

    /// One binding over all pieces of all these tensors, where one buffer holds them and a binding may be so long.
    pub(crate) fn window<'a>(
        &self,
        tensors: impl IntoIterator<Item = &'a TensorEntry>,
    ) -> Option<Window<'_>> {
        let mut range: Option<(u64, u64)> = None;
        for piece in tensors.into_iter().flat_map(|tensor| &tensor.pieces) {
            let first = self.layout.base(piece);
            let end = first + u64::from(piece.bytes);
            let (begin, last) = range.unwrap_or((first, end));
            range = Some((begin.min(first), last.max(end)));
        }
        let (first, end) = range?;
        self.window_of(first, end)
    }

    fn window_of(&self, first: u64, end: u64) -> Option<Window<'_>> {
        let (buffer, at) = self.layout.locate(first);
        let fits = self.layout.locate(end - 1).0 == buffer && end - first <= self.layout.most();
        fits.then(|| Window {
            binding: wgpu::BufferBinding {
                buffer: &self.buffers[buffer],
                offset: at,
                size: wgpu::BufferSize::new(end - first),
            },
            first,
        })
    }

    /// Where a piece lies in a window that holds it.
    pub(crate) fn places(
        &self,
        window: &Window<'_>,
        tensor: &TensorEntry,
        piece: &Piece,
    ) -> Result<Places> {
        let layout = piece_layout(tensor, piece)?;
        let at = self.layout.base(piece) - window.first;
        Ok(Places {
            values: places(at),
            scales: places(at + layout.scales_offset),
        })
    }

    /// All pieces of a matrix in as few bindings as possible.
    pub(crate) fn runs(&self, tensor: &TensorEntry) -> Result<Vec<Run<'_>>> {
        let mut runs = Vec::new();
        let pieces: Vec<_> = tensor.row_ranges().collect();
        let mut from = 0;
        while from < pieces.len() {
            let (ref rows, first) = pieces[from];
            let base = self.layout.base(first);
            let step = u64::from(first.bytes).next_multiple_of(ALIGN);
            // As long as pieces follow each other at equal steps: only the last one may have fewer rows.
            let mut until = from + 1;
            while let Some((_, piece)) = pieces.get(until) {
                let at = base + step * (until - from) as u64;
                let regular = self.layout.base(piece) == at
                    && pieces[until - 1].1.rows == first.rows
                    && piece.rows <= first.rows;
                if !regular || self.window_of(base, at + u64::from(piece.bytes)).is_none() {
                    break;
                }
                until += 1;
            }
            let (ref last_rows, last) = pieces[until - 1];
            let end = self.layout.base(last) + u64::from(last.bytes);
            let window =
                self.window_of(base, end)
                    .ok_or_else(|| EngineError::UnsupportedModel {
                        what: format!("a piece of {}", tensor.name),
                        got: format!("{} bytes", first.bytes),
                        expected: "no more than a binding holds",
                    })?;
            runs.push(Run {
                window,
                weight: weight_type(tensor.dtype),
                row_offset: rows.start,
                rows: last_rows.end - rows.start,
                cols: tensor.cols,
                piece_rows: first.rows,
                piece_step: places(step),
                scales_step: places(piece_layout(tensor, first)?.scales_offset),
                last_scales_step: places(piece_layout(tensor, last)?.scales_offset),
            });
            from = until;
        }
        Ok(runs)
    }

    pub(crate) fn destroy(&self) {
        for buffer in &self.buffers {
            buffer.destroy();
        }
    }
}

fn piece_layout(tensor: &TensorEntry, piece: &Piece) -> Result<PieceLayout> {
    let dtype: DType = tensor.dtype;
    PieceLayout::of(dtype, piece.rows, tensor.cols)
        .map_err(|source| EngineError::Manifest { source })
}
