//! Weights on the device: one buffer a shard, filled chunk by chunk with bytes whose hash has been checked.

use moa_format::{CHUNK_BYTES, PieceLayout, Shard, TensorEntry};
use moa_shaders::WeightType;

use crate::buffers::Allocator;
use crate::error::{EngineError, Result};
use crate::gpu::Gpu;
use crate::setup::{Setup, weight_type};

/// The shards' buffers, and which chunks have arrived.
#[derive(Debug)]
pub(crate) struct ShardBuffers {
    shards: Vec<Shard>,
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

impl ShardBuffers {
    pub(crate) fn new(allocator: &mut Allocator<'_>, setup: &Setup) -> Self {
        let shards = setup.manifest().weights.shards.clone();
        let buffers = shards
            .iter()
            .map(|shard| allocator.storage("weights", &shard.file, u64::from(shard.bytes)))
            .collect();
        let arrived = shards
            .iter()
            .map(|shard| vec![false; shard.chunk_sha256.len()])
            .collect();
        Self {
            shards,
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
        gpu.queue.write_buffer(&self.buffers[shard], offset, bytes);
        // Staging memory is given back as soon as the copy is done, instead of at the first dispatch.
        gpu.queue.submit([]);
        self.arrived[shard][chunk] = true;
        gpu.check()
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
                let layout = PieceLayout::of(tensor.dtype, piece.rows, tensor.cols)
                    .map_err(|source| EngineError::Manifest { source })?;
                let part = |offset: u64, bytes: u64| wgpu::BufferBinding {
                    buffer: &self.buffers[piece.shard as usize],
                    offset: u64::from(piece.offset) + offset,
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

    pub(crate) fn destroy(&self) {
        for buffer in &self.buffers {
            buffer.destroy();
        }
    }
}
