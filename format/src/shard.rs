//! Where pieces lie: shards of at most 24 MiB, filled in the order of the forward pass.
//!
//! [`ShardBuilder`] takes packed pieces one after the other and hands back each shard as soon as it is full,
//! so that writing a model takes the memory of one shard and one piece. It writes no file.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::error::{FormatError, Result, ensure};
use crate::hash::{is_sha256, sha256_hex};
use crate::model::TensorSpec;
use crate::piece::{ALIGN, ALIGN_USIZE, DType, MAX_PIECE_BYTES, PieceLayout, split_rows};
use crate::quant::PackedPiece;

/// Largest shard: some static hosts stop at 25 MiB.
pub const MAX_SHARD_BYTES: u32 = MAX_PIECE_BYTES;
/// Bytes under one checksum, so that a download can be checked, and taken up again, in parts.
pub const CHUNK_BYTES: u32 = 4 << 20;

const MAX_SHARD: usize = MAX_SHARD_BYTES as usize;
const CHUNK: usize = CHUNK_BYTES as usize;

/// A file of weights, as the manifest lists it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    /// `weights-NNN.bin`, NNN its index.
    pub file: String,
    /// Its size.
    pub bytes: u32,
    /// SHA-256 of each [`CHUNK_BYTES`], the last one shorter.
    pub chunk_sha256: Vec<String>,
}

/// A tensor, as the manifest lists it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TensorEntry {
    /// Hugging Face name.
    pub name: String,
    /// How it is stored.
    pub dtype: DType,
    /// Rows (outputs); 1 for norms and biases.
    pub rows: u32,
    /// Columns (inputs).
    pub cols: u32,
    /// How the source stored it, in the source's own words.
    pub source_dtype: String,
    /// Largest absolute difference between a source weight and its stored value.
    pub max_error: f32,
    /// Its rows, from the first to the last.
    pub pieces: Vec<Piece>,
}

/// Consecutive rows of a tensor, in one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    /// Number of rows.
    pub rows: u32,
    /// Index of the shard.
    pub shard: u32,
    /// First byte in the shard.
    pub offset: u32,
    /// Size, as [`PieceLayout`] says.
    pub bytes: u32,
}

/// A shard that is complete: write `data` under `entry.file`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FinishedShard {
    /// The manifest's line.
    pub entry: Shard,
    /// The bytes.
    pub data: Vec<u8>,
}

/// What the manifest says about all weights.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Weights {
    /// The files.
    pub shards: Vec<Shard>,
    /// The tensors, in the order of [`crate::tensors`].
    pub tensors: Vec<TensorEntry>,
}

/// Name of the shard with this index.
pub fn shard_file(index: usize) -> String {
    format!("weights-{index:03}.bin")
}

/// SHA-256 of each [`CHUNK_BYTES`] of a shard.
pub fn chunk_sha256(bytes: &[u8]) -> Vec<String> {
    bytes.chunks(CHUNK).map(sha256_hex).collect()
}

impl Shard {
    /// Checks the chunk with this index.
    pub fn check_chunk(&self, index: usize, bytes: &[u8]) -> Result<()> {
        let what = || format!("chunk {index} of {}", self.file);
        let Some(expected) = self.chunk_sha256.get(index) else {
            return Err(FormatError::invalid(
                "chunk index",
                index,
                format!("below {} in {}", self.chunk_sha256.len(), self.file),
            ));
        };
        let start = index as u64 * u64::from(CHUNK_BYTES);
        let length = u64::from(self.bytes)
            .saturating_sub(start)
            .min(u64::from(CHUNK_BYTES));
        if bytes.len() as u64 != length {
            return Err(FormatError::size(what(), bytes.len() as u64, length));
        }
        let got = sha256_hex(bytes);
        if got != *expected {
            return Err(FormatError::Damaged {
                what: what(),
                got,
                expected: expected.clone(),
            });
        }
        Ok(())
    }

    /// Checks the whole file.
    pub fn check_bytes(&self, bytes: &[u8]) -> Result<()> {
        if bytes.len() as u64 != u64::from(self.bytes) {
            return Err(FormatError::size(
                self.file.clone(),
                bytes.len() as u64,
                self.bytes.into(),
            ));
        }
        let mut chunks = bytes.chunks(CHUNK).enumerate();
        chunks.try_for_each(|(index, chunk)| self.check_chunk(index, chunk))
    }

    /// Checks what the manifest says of the shard with this index.
    pub(crate) fn check_entry(&self, index: usize) -> Result<()> {
        ensure(
            self.file == shard_file(index),
            format!("file of shard {index}"),
            format!("{:?}", self.file),
            shard_file(index),
        )?;
        ensure(
            (1..=MAX_SHARD_BYTES).contains(&self.bytes),
            format!("bytes of {}", self.file),
            self.bytes,
            format!("1 to {MAX_SHARD_BYTES}"),
        )?;
        let chunks = self.bytes.div_ceil(CHUNK_BYTES) as usize;
        ensure(
            self.chunk_sha256.len() == chunks,
            format!("number of checksums of {}", self.file),
            self.chunk_sha256.len(),
            chunks.to_string(),
        )?;
        for sha256 in &self.chunk_sha256 {
            ensure(
                is_sha256(sha256),
                format!("checksum in {}", self.file),
                format!("{sha256:?}"),
                "64 lower-case hex digits",
            )?;
        }
        Ok(())
    }
}

impl TensorEntry {
    /// The pieces with the rows that they hold.
    pub fn row_ranges(&self) -> impl Iterator<Item = (Range<u32>, &Piece)> {
        self.pieces.iter().scan(0u32, |row, piece| {
            let start = *row;
            *row = row.saturating_add(piece.rows);
            Some((start..*row, piece))
        })
    }

    /// Bytes of all pieces.
    pub fn bytes(&self) -> u64 {
        self.pieces.iter().map(|piece| u64::from(piece.bytes)).sum()
    }
}

impl Weights {
    /// Checks every name, count, offset and extent against the tensors that the model must have.
    ///
    /// Pieces must follow each other without overlap, each beginning at the first aligned byte after the last
    /// one or at the start of the next shard, and the shards must end where their last piece does.
    pub fn check(&self, expected: &[TensorSpec]) -> Result<()> {
        for (index, shard) in self.shards.iter().enumerate() {
            shard.check_entry(index)?;
        }
        for (index, spec) in expected.iter().enumerate() {
            let got = self.tensors.get(index).map_or("missing", |t| &t.name);
            if got != spec.name {
                return Err(FormatError::WrongTensor {
                    index,
                    got: got.to_owned(),
                    expected: spec.name.clone(),
                });
            }
        }
        if let Some(extra) = self.tensors.get(expected.len()) {
            return Err(FormatError::WrongTensor {
                index: expected.len(),
                got: extra.name.clone(),
                expected: "the end of the list".into(),
            });
        }
        let mut end = End { shard: 0, byte: 0 };
        for (tensor, spec) in self.tensors.iter().zip(expected) {
            self.check_tensor(tensor, spec, &mut end)?;
        }
        self.check_shard_end(&end)?;
        ensure(
            end.shard + 1 == self.shards.len() as u64,
            "number of shards",
            self.shards.len(),
            format!("{} as the tensors use", end.shard + 1),
        )
    }

    fn check_tensor(&self, tensor: &TensorEntry, spec: &TensorSpec, end: &mut End) -> Result<()> {
        let name = &tensor.name;
        for (what, got, expected) in [
            ("rows", tensor.rows, spec.rows),
            ("columns", tensor.cols, spec.cols),
        ] {
            ensure(
                got == expected,
                format!("number of {what} of {name}"),
                got,
                expected.to_string(),
            )?;
        }
        ensure(
            tensor.max_error.is_finite() && tensor.max_error >= 0.0,
            format!("max_error of {name}"),
            tensor.max_error,
            "a finite number of at least 0",
        )?;
        let mut rows = 0u64;
        for piece in &tensor.pieces {
            self.check_piece(tensor, piece, end)?;
            rows += u64::from(piece.rows);
        }
        ensure(
            rows == u64::from(spec.rows),
            format!("rows in the pieces of {name}"),
            rows,
            spec.rows.to_string(),
        )
    }

    fn check_piece(&self, tensor: &TensorEntry, piece: &Piece, end: &mut End) -> Result<()> {
        let name = &tensor.name;
        let layout = PieceLayout::of(tensor.dtype, piece.rows, tensor.cols)?;
        ensure(
            u64::from(piece.bytes) == layout.bytes && piece.bytes <= MAX_PIECE_BYTES,
            format!("bytes of a piece of {name}"),
            piece.bytes,
            format!(
                "{} ({} rows as {}), at most {MAX_PIECE_BYTES}",
                layout.bytes,
                piece.rows,
                tensor.dtype.name()
            ),
        )?;
        let mut start = end.byte.next_multiple_of(ALIGN);
        if u64::from(piece.shard) != end.shard {
            self.check_shard_end(end)?;
            end.shard += 1;
            start = 0;
        }
        ensure(
            u64::from(piece.shard) == end.shard,
            format!("shard of a piece of {name}"),
            piece.shard,
            end.shard.to_string(),
        )?;
        ensure(
            u64::from(piece.offset) == start,
            format!("offset of a piece of {name}"),
            piece.offset,
            format!("{start}, right after the piece before"),
        )?;
        end.byte = start + u64::from(piece.bytes);
        let shard_bytes = self.shards.get(piece.shard as usize).map_or(0, |s| s.bytes);
        ensure(
            end.byte <= u64::from(shard_bytes),
            format!("end of a piece of {name}"),
            end.byte,
            format!("at most {shard_bytes}, the bytes of shard {}", piece.shard),
        )
    }

    fn check_shard_end(&self, end: &End) -> Result<()> {
        let index = usize::try_from(end.shard).unwrap_or(usize::MAX);
        let got = self.shards.get(index).map_or(0, |shard| shard.bytes);
        ensure(
            u64::from(got) == end.byte,
            format!("bytes of shard {index}"),
            got,
            format!("{}, where its last piece ends", end.byte),
        )
    }
}

/// How far the pieces seen so far reach.
struct End {
    shard: u64,
    byte: u64,
}

/// Turns packed pieces into shards and the manifest's lists.
///
/// For each tensor of [`crate::tensors`], in that order: [`begin_tensor`](Self::begin_tensor), then
/// [`push_piece`](Self::push_piece) for as long as [`next_rows`](Self::next_rows) asks for rows.
#[derive(Debug, Default)]
pub struct ShardBuilder {
    data: Vec<u8>,
    weights: Weights,
    /// Rows of the pieces of the last tensor that are still to come, the next one last.
    pending: Vec<u32>,
}

impl ShardBuilder {
    /// A builder without weights.
    pub fn new() -> Self {
        Self::default()
    }

    /// Begins a tensor. The one before must be complete.
    pub fn begin_tensor(
        &mut self,
        spec: &TensorSpec,
        dtype: DType,
        source_dtype: &str,
    ) -> Result<()> {
        self.check_complete()?;
        self.pending = split_rows(dtype, spec.rows, spec.cols)?;
        self.pending.reverse();
        self.weights.tensors.push(TensorEntry {
            name: spec.name.clone(),
            dtype,
            rows: spec.rows,
            cols: spec.cols,
            source_dtype: source_dtype.to_owned(),
            max_error: 0.0,
            pieces: Vec::new(),
        });
        Ok(())
    }

    /// The rows of the current tensor that the next piece must hold; `None` once it is complete.
    pub fn next_rows(&self) -> Option<Range<u32>> {
        let rows = *self.pending.last()?;
        let tensor = self.weights.tensors.last()?;
        let start = tensor.pieces.iter().map(|piece| piece.rows).sum();
        Some(start..start + rows)
    }

    /// Adds the piece with the rows that [`next_rows`](Self::next_rows) named. Returns a shard when one became full.
    pub fn push_piece(&mut self, piece: &PackedPiece) -> Result<Option<FinishedShard>> {
        let (Some(&rows), Some(tensor)) = (self.pending.last(), self.weights.tensors.last_mut())
        else {
            return Err(FormatError::invalid(
                "piece",
                "one more than the tensor has",
                "begin_tensor first",
            ));
        };
        let layout = PieceLayout::of(tensor.dtype, rows, tensor.cols)?;
        let too_long = |_wide| {
            FormatError::size(
                format!("piece of {}", tensor.name),
                piece.bytes.len() as u64,
                layout.bytes,
            )
        };
        let bytes = u32::try_from(piece.bytes.len()).map_err(too_long)?;
        if u64::from(bytes) != layout.bytes || bytes > MAX_PIECE_BYTES {
            return Err(FormatError::size(
                format!("piece of {}", tensor.name),
                bytes.into(),
                layout.bytes,
            ));
        }
        ensure(
            piece.max_error.is_finite() && piece.max_error >= 0.0,
            format!("max_error of {}", tensor.name),
            piece.max_error,
            "a finite number of at least 0",
        )?;
        let mut finished = None;
        let mut offset = self.data.len().next_multiple_of(ALIGN_USIZE);
        if offset + piece.bytes.len() > MAX_SHARD {
            finished = Some(seal(&mut self.data, &mut self.weights.shards));
            offset = 0;
        }
        self.data.resize(offset, 0);
        self.data.extend_from_slice(&piece.bytes);
        self.pending.pop();
        tensor.max_error = tensor.max_error.max(piece.max_error);
        let narrow = |value: usize| {
            u32::try_from(value)
                .map_err(|_wide| FormatError::invalid("shard position", value, "a u32"))
        };
        tensor.pieces.push(Piece {
            rows,
            shard: narrow(self.weights.shards.len())?,
            offset: narrow(offset)?,
            bytes,
        });
        Ok(finished)
    }

    /// The last shard, if anything was written since the one before, and the manifest's lists.
    pub fn finish(mut self) -> Result<(Option<FinishedShard>, Weights)> {
        self.check_complete()?;
        let last = (!self.data.is_empty()).then(|| seal(&mut self.data, &mut self.weights.shards));
        Ok((last, self.weights))
    }

    fn check_complete(&self) -> Result<()> {
        match self.weights.tensors.last() {
            Some(tensor) if !self.pending.is_empty() => Err(FormatError::invalid(
                format!("pieces of {}", tensor.name),
                tensor.pieces.len(),
                (tensor.pieces.len() + self.pending.len()).to_string(),
            )),
            _ => Ok(()),
        }
    }
}

fn seal(data: &mut Vec<u8>, shards: &mut Vec<Shard>) -> FinishedShard {
    let data = std::mem::take(data);
    let entry = Shard {
        file: shard_file(shards.len()),
        // Pieces are only added while the sum stays below MAX_SHARD.
        bytes: u32::try_from(data.len()).unwrap_or(u32::MAX),
        chunk_sha256: chunk_sha256(&data),
    };
    shards.push(entry.clone());
    FinishedShard { entry, data }
}
