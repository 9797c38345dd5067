//! Checkpoints and vectors under tests/fixtures.

use std::path::PathBuf;

use moa_lm::{Cpu, Lm, WeightsFrom};
use moa_mask::{HeadRule, MaskGrid, ModelMasks};
use moa_model::Checkpoint;
use safetensors::SafeTensors;
use safetensors::tensor::Dtype;

pub(crate) fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures")
}

pub(crate) fn load(checkpoint: Checkpoint) -> Lm<Cpu> {
    let config = checkpoint.config().clone();
    let read = |name: &str| checkpoint.tensor(name).and_then(|tensor| tensor.to_f32());
    Lm::load(Cpu, &WeightsFrom::new(config, read), &()).unwrap()
}

pub(crate) fn tiny(name: &str) -> Lm<Cpu> {
    load(Checkpoint::open_weights(fixtures().join(name)).unwrap())
}

/// The vectors that `PyTorch` computed for one tiny model.
pub(crate) struct Oracle(Vec<u8>);

impl Oracle {
    pub(crate) fn open(name: &str) -> Self {
        Self(std::fs::read(fixtures().join(name).join("oracle.safetensors")).unwrap())
    }

    pub(crate) fn f64(&self, name: &str) -> Vec<f64> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let tensor = file.tensor(name).unwrap();
        assert_eq!(tensor.dtype(), Dtype::F64);
        let (values, []) = tensor.data().as_chunks::<8>() else {
            panic!("whole values");
        };
        values
            .iter()
            .map(|&bytes| f64::from_le_bytes(bytes))
            .collect()
    }

    /// A tensor of whole numbers, i64 or u8.
    pub(crate) fn u32(&self, name: &str) -> Vec<u32> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let tensor = file.tensor(name).unwrap();
        if tensor.dtype() == Dtype::U8 {
            return tensor.data().iter().map(|&byte| u32::from(byte)).collect();
        }
        assert_eq!(tensor.dtype(), Dtype::I64);
        let (values, []) = tensor.data().as_chunks::<8>() else {
            panic!("whole values");
        };
        values
            .iter()
            .map(|&bytes| u32::try_from(i64::from_le_bytes(bytes)).unwrap())
            .collect()
    }
}

/// Masks of explicit spans `[layer][kv_head]`.
pub(crate) fn exact_masks(spans: &[Vec<u32>], sink: u32, context: u32) -> ModelMasks {
    let rules: Vec<Vec<HeadRule>> = spans
        .iter()
        .map(|layer| layer.iter().map(|&span| HeadRule::Exact { span }).collect())
        .collect();
    ModelMasks::from_rules(&rules, context, MaskGrid::new(sink, sink.max(1)).unwrap()).unwrap()
}
