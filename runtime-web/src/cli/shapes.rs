//! Models of well-known shapes with random weights, for benches: what decoding costs follows from the shape alone.

use clap::ValueEnum;
use moa_format::{
    DType, Family, FormatError, Manifest, ModelConfig, PackedPiece, PieceLayout, Plan, Provenance,
    RopeConfig, ShardBuilder, TensorRole, plan_entry, tensors,
};
use moa_mask::{HeadRule, MaskGrid};

/// A shape: linears in q4, embedding and head in q8, as bundles have them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Shape {
    /// SmolLM2-135M.
    #[value(name = "smollm2-135m")]
    SmolLm2,
    /// Qwen2.5-0.5B.
    #[value(name = "qwen-0.5b")]
    QwenHalf,
    /// Llama-3.2-1B.
    #[value(name = "llama-1b")]
    Llama1b,
    /// Llama-3.2-3B.
    #[value(name = "llama-3b")]
    Llama3b,
}

impl Shape {
    fn config(self) -> ModelConfig {
        let (layers, hidden_dim, ffn_dim, heads, kv_heads, head_dim, vocab_size) = match self {
            Self::SmolLm2 => (30, 576, 1536, 9, 3, 64, 49_152),
            Self::QwenHalf => (24, 896, 4864, 14, 2, 64, 151_936),
            Self::Llama1b => (16, 2048, 8192, 32, 8, 64, 128_256),
            Self::Llama3b => (28, 3072, 8192, 24, 8, 128, 128_256),
        };
        ModelConfig {
            family: if self == Self::QwenHalf {
                Family::Qwen2
            } else {
                Family::Llama
            },
            layers,
            hidden_dim,
            ffn_dim,
            heads,
            kv_heads,
            head_dim,
            vocab_size,
            rms_norm_eps: 1e-5,
            rope: RopeConfig {
                theta: 500_000.0,
                scaling: None,
            },
            tied_embeddings: true,
            qkv_bias: self == Self::QwenHalf,
            max_context: 131_072,
            bos: Some(1),
            eos: vec![2],
        }
    }

    /// Manifest, plan and shards. At a density below 1 a layer's heads have spans of half, once and one and a half
    /// times the density of the context in turn.
    pub(super) fn bundle(
        self,
        density: f64,
    ) -> Result<(Manifest, Plan, Vec<Vec<u8>>), FormatError> {
        let config = self.config();
        let plan = plan(&config, density);
        let mut builder = ShardBuilder::new();
        let mut shards = Vec::new();
        let mut noise = Noise(0x9e37_79b9_7f4a_7c15);
        for spec in tensors(&config) {
            let dtype = match spec.role {
                TensorRole::Norm | TensorRole::Bias => DType::F32,
                TensorRole::Embedding | TensorRole::LmHead => DType::Q8,
                TensorRole::Linear => DType::Q4,
            };
            builder.begin_tensor(&spec, dtype, "random")?;
            while let Some(rows) = builder.next_rows() {
                let layout = PieceLayout::of(dtype, rows.end - rows.start, spec.cols)?;
                let piece = PackedPiece {
                    bytes: noise.piece(dtype, layout, spec.cols),
                    max_error: 0.0,
                };
                shards.extend(builder.push_piece(&piece)?);
            }
        }
        let (last, weights) = builder.finish()?;
        shards.extend(last);
        let (entry, _) = plan_entry(&plan, &config)?;
        let manifest = Manifest {
            name: format!("random {self:?}"),
            model: config,
            tokenizer: None,
            default_plan: plan.name.clone(),
            plans: vec![entry],
            weights,
            files: Vec::new(),
            provenance: Provenance::default(),
        };
        Ok((
            manifest,
            plan,
            shards.into_iter().map(|shard| shard.data).collect(),
        ))
    }
}

fn plan(config: &ModelConfig, density: f64) -> Plan {
    if density >= 1.0 {
        return Plan::dense(config, MaskGrid::default());
    }
    let rule = |head: u32| HeadRule::Elastic {
        alpha: 0.0,
        beta: density * [0.5, 1.0, 1.5][head as usize % 3],
    };
    Plan {
        name: format!("density-{density}"),
        rules: (0..config.layers)
            .map(|layer| {
                (0..config.kv_heads)
                    .map(|head| rule(layer + head))
                    .collect()
            })
            .collect(),
        ..Plan::dense(config, MaskGrid::default())
    }
}

/// Bits that no cache can hold: every piece has its own.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A piece whose weights are about 1 / sqrt(cols).
    fn piece(&mut self, dtype: DType, layout: PieceLayout, cols: u32) -> Vec<u8> {
        let bytes = |count: u64| usize::try_from(count).unwrap_or(usize::MAX);
        let mut piece = vec![0; bytes(layout.bytes)];
        let (values, scales) = piece.split_at_mut(bytes(layout.scales_offset));
        let root = f64::from(cols).sqrt();
        match dtype {
            DType::Q4 | DType::Q8 => {
                for word in values.chunks_exact_mut(8) {
                    word.copy_from_slice(&self.next().to_le_bytes());
                }
                // Standard deviations of a nibble and of a signed byte; a nibble's minimum puts zero in the middle.
                let pair = if dtype == DType::Q4 {
                    let scale = half_bits(1.0 / (4.6 * root));
                    // -8 times the scale: the sign, and three more in the exponent.
                    [scale, (scale + (3 << 10)) | 0x8000]
                } else {
                    [half_bits(1.0 / (74.0 * root)); 2]
                };
                let word = u32::from(pair[0]) | u32::from(pair[1]) << 16;
                for scale in scales.chunks_exact_mut(4) {
                    scale.copy_from_slice(&word.to_le_bytes());
                }
            }
            DType::F16 | DType::F32 => {
                for value in piece.chunks_exact_mut(4) {
                    value.copy_from_slice(&1.0f32.to_le_bytes());
                }
            }
        }
        piece
    }
}

/// The half that is nearest below a small positive number: normal halves only.
#[expect(clippy::cast_possible_truncation, reason = "checked: a normal half")]
fn half_bits(value: f64) -> u16 {
    let bits = (value.max(1e-4) as f32).to_bits();
    let exponent = (bits >> 23).saturating_sub(127 - 15).clamp(1, 30);
    ((exponent << 10) | (bits >> 13 & 0x3ff)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_are_halves() {
        assert_eq!(half_bits(1.0), 0x3c00);
        assert_eq!(half_bits(0.25), 0x3400);
        assert_eq!(half_bits(0.375), 0x3600);
    }

    #[test]
    fn a_plan_has_the_density_that_was_asked_for() {
        let config = Shape::SmolLm2.config();
        let masks = plan(&config, 0.25).masks(8192).unwrap();
        let density = moa_mask::density::kv_density(masks.iter(), 8192);
        assert!((density - 0.25).abs() < 0.02, "{density}");
        assert_eq!(plan(&config, 1.0).name, "dense");
    }
}
