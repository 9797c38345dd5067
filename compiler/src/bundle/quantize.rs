//! From a checkpoint's tensor to the pieces that a bundle stores.
//!
//! Which type a tensor gets is decided here; how values are packed is `moa_format`'s business. A tensor whose
//! rows are no multiple of the quantization group is stored as f16.

use moa_format::{
    BlockType, DType, FormatError, PackedPiece, TensorRole, TensorSpec, pack, repack, split_rows,
};
use moa_model::{SourceTensor, SourceType};

use crate::cli::QuantChoice;

/// A tensor ready to be laid into shards.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) dtype: DType,
    pub(crate) pieces: Vec<PackedPiece>,
}

/// The stored type of a tensor.
fn stored_type(quant: QuantChoice, spec: &TensorSpec, source: SourceType) -> DType {
    let is_matrix = matches!(
        spec.role,
        TensorRole::Embedding | TensorRole::Linear | TensorRole::LmHead
    );
    if !is_matrix {
        return DType::F32;
    }
    let wanted = match quant {
        QuantChoice::F16 => DType::F16,
        QuantChoice::Q8 => DType::Q8,
        QuantChoice::Q4 if spec.role == TensorRole::Linear => DType::Q4,
        QuantChoice::Q4 => DType::Q8,
        QuantChoice::Keep => match source {
            SourceType::F32 => DType::F32,
            SourceType::Q4_0 | SourceType::Q4_1 | SourceType::Q4K => DType::Q4,
            SourceType::Q5_0
            | SourceType::Q5_1
            | SourceType::Q5K
            | SourceType::Q6K
            | SourceType::Q8_0 => DType::Q8,
            // F16 and BF16, and whatever 16-bit type may come: nothing stores fewer bits.
            _ => DType::F16,
        },
    };
    wanted.for_cols(spec.cols)
}

/// The blocks that go into `dtype` as they are.
fn block_type(source: SourceType, dtype: DType) -> Option<BlockType> {
    let block = match source {
        SourceType::Q4_0 => BlockType::Q4_0,
        SourceType::Q4_1 => BlockType::Q4_1,
        SourceType::Q8_0 => BlockType::Q8_0,
        SourceType::Q4K => BlockType::Q4K,
        _ => return None,
    };
    (block.dtype() == dtype).then_some(block)
}

/// Packs one tensor, piece by piece.
///
/// What `dtype` cannot hold (a minimum or a value beyond f16) goes into the next wider type.
pub(crate) fn quantize(
    quant: QuantChoice,
    spec: &TensorSpec,
    tensor: &SourceTensor,
) -> anyhow::Result<Stored> {
    let dtype = stored_type(quant, spec, tensor.source_type());
    let wider = match dtype {
        DType::Q4 => &[DType::Q4, DType::Q8, DType::F32][..],
        DType::Q8 => &[DType::Q8, DType::F32],
        DType::F16 => &[DType::F16, DType::F32],
        DType::F32 => &[DType::F32],
    };
    let mut refused = None;
    for &dtype in wider {
        match pack_as(dtype, spec, tensor) {
            Ok(stored) => return Ok(stored),
            Err(Packing::Format(error @ FormatError::Unrepresentable { .. })) => {
                refused = Some(error);
            }
            Err(Packing::Format(error)) => return Err(error.into()),
            Err(Packing::Model(error)) => return Err(error.into()),
        }
    }
    match refused {
        Some(error) => {
            Err(anyhow::Error::new(error).context(format!("cannot store {}", spec.name)))
        }
        None => anyhow::bail!("no type stores {}", spec.name),
    }
}

enum Packing {
    Format(FormatError),
    Model(moa_model::ModelError),
}

fn pack_as(dtype: DType, spec: &TensorSpec, tensor: &SourceTensor) -> Result<Stored, Packing> {
    let rows = split_rows(dtype, spec.rows, spec.cols).map_err(Packing::Format)?;
    let cols = spec.cols as usize;
    let mut pieces = Vec::with_capacity(rows.len());
    if let Some(block) = block_type(tensor.source_type(), dtype) {
        let row_bytes = tensor.row_bytes();
        let mut rest = tensor.bytes();
        for rows in rows {
            let (blocks, tail) = rest.split_at(rows as usize * row_bytes);
            pieces.push(repack(block, blocks, spec.cols).map_err(Packing::Format)?);
            rest = tail;
        }
    } else {
        let values = tensor.to_f32().map_err(Packing::Model)?;
        let mut rest = values.as_slice();
        for rows in rows {
            let (weights, tail) = rest.split_at(rows as usize * cols);
            pieces.push(pack(dtype, weights, spec.cols).map_err(Packing::Format)?);
            rest = tail;
        }
    }
    Ok(Stored { dtype, pieces })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(role: TensorRole, cols: u32) -> TensorSpec {
        TensorSpec {
            name: "x".into(),
            rows: 4,
            cols,
            role,
        }
    }

    #[test]
    fn nothing_is_stored_in_fewer_bits_than_it_had() {
        let bits = |dtype| match dtype {
            DType::Q4 => 5.0,
            DType::Q8 => 8.5,
            DType::F16 => 16.0,
            DType::F32 => 32.0,
        };
        for source in [
            SourceType::F32,
            SourceType::F16,
            SourceType::Bf16,
            SourceType::Q4_0,
            SourceType::Q4_1,
            SourceType::Q5_0,
            SourceType::Q5_1,
            SourceType::Q8_0,
            SourceType::Q4K,
            SourceType::Q5K,
            SourceType::Q6K,
        ] {
            let stored = stored_type(QuantChoice::Keep, &spec(TensorRole::Linear, 64), source);
            assert!(bits(stored) >= source.bits_per_weight(), "{source}");
        }
    }

    #[test]
    fn roles_and_widths_decide() {
        let linear = |cols| {
            stored_type(
                QuantChoice::Q4,
                &spec(TensorRole::Linear, cols),
                SourceType::F32,
            )
        };
        assert_eq!(linear(64), DType::Q4);
        assert_eq!(linear(112), DType::F16, "no whole number of groups");
        assert_eq!(
            stored_type(
                QuantChoice::Q4,
                &spec(TensorRole::LmHead, 64),
                SourceType::F32
            ),
            DType::Q8
        );
        assert_eq!(
            stored_type(
                QuantChoice::Q4,
                &spec(TensorRole::Norm, 64),
                SourceType::F32
            ),
            DType::F32
        );
    }
}
