//! Patterns of `DuoAttention`: a folder of `full_attention_heads.tsv`, one gate in [0, 1] for every KV head, and
//! `config.json` with the sink and the recent window of all other heads.
//!
//! A sparsity says which share of heads, those with the smallest gates, get the window.

use std::path::Path;

use moa_format::ModelConfig;
use moa_mask::{HeadRule, MaskGrid, ModelMasks};
use serde::Deserialize;

use crate::files::read_bounded;
use crate::hint::Told;
use crate::plans::masks_of;

const FILE_LIMIT: u64 = 16 << 20;

/// A pattern folder.
#[derive(Debug, Clone)]
pub(crate) struct DuoPattern {
    /// `[layer * kv_heads + kv_head]`.
    gates: Vec<f64>,
    layers: usize,
    sink: u32,
    recent: u32,
}

#[derive(Deserialize)]
struct DuoConfig {
    sink_size: u32,
    recent_size: u32,
}

impl DuoPattern {
    /// Reads a folder and checks it against the model.
    pub(crate) fn open(folder: &Path, config: &ModelConfig) -> anyhow::Result<Self> {
        let refuse = |message: String| {
            anyhow::Error::from(Told::new(
                message,
                "a pattern folder holds full_attention_heads.tsv, a row of gates for every layer, and config.json with sink_size and recent_size",
            ))
        };
        let path = folder.join("config.json");
        let bytes = read_bounded(&path, FILE_LIMIT)?;
        let DuoConfig {
            sink_size,
            recent_size,
        } = serde_json::from_slice(&bytes)
            .map_err(|error| refuse(format!("{}: {error}", path.display())))?;
        if recent_size == 0 {
            return Err(refuse(format!("{}: recent_size is 0", path.display())));
        }
        let path = folder.join("full_attention_heads.tsv");
        let text = String::from_utf8(read_bounded(&path, FILE_LIMIT)?)
            .map_err(|_bytes| refuse(format!("{} is not text", path.display())))?;
        let rows: Vec<&str> = text
            .lines()
            .filter(|line| !line.trim().is_empty())
            .collect();
        if rows.len() != config.layers as usize {
            return Err(refuse(format!(
                "{} has {} rows, the model has {} layers",
                path.display(),
                rows.len(),
                config.layers
            )));
        }
        let mut gates = Vec::new();
        for (layer, row) in rows.iter().enumerate() {
            let values: Vec<f64> = row
                .split_whitespace()
                .map(|value| value.parse().unwrap_or(f64::NAN))
                .collect();
            if values.len() != config.kv_heads as usize
                || values.iter().any(|value| !value.is_finite())
            {
                return Err(refuse(format!(
                    "{} row {}: expected {} finite numbers, one for each KV head",
                    path.display(),
                    layer + 1,
                    config.kv_heads
                )));
            }
            gates.extend(values);
        }
        Ok(Self {
            gates,
            layers: rows.len(),
            sink: sink_size,
            recent: recent_size,
        })
    }

    /// Heads that keep everything at a sparsity.
    pub(crate) fn full_at(&self, sparsity: f64) -> usize {
        let heads = self.gates.len();
        #[expect(
            clippy::cast_possible_truncation,
            reason = "a share of a count of heads"
        )]
        let windowed = (sparsity.clamp(0.0, 1.0) * heads as f64).round() as usize;
        heads - windowed
    }

    /// The most heads that can keep everything while all heads together keep at most `kept` tokens at `context`.
    pub(crate) fn full_within(&self, kept: f64, context: u32) -> usize {
        let heads = self.gates.len();
        let narrow = f64::from(self.sink.saturating_add(self.recent).min(context));
        let room = kept - narrow * heads as f64;
        let each = f64::from(context) - narrow;
        if each <= 0.0 {
            return heads;
        }
        #[expect(clippy::cast_possible_truncation, reason = "a count of heads, clamped")]
        let full = (room / each + 1e-9).floor().max(0.0) as usize;
        full.min(heads)
    }

    /// The masks with the `full` largest gates open; of equal gates the earlier head's.
    pub(crate) fn masks(&self, full: usize, context: u32) -> anyhow::Result<ModelMasks> {
        let mut order: Vec<usize> = (0..self.gates.len()).collect();
        order.sort_by(|&a, &b| self.gates[b].total_cmp(&self.gates[a]).then(a.cmp(&b)));
        let narrow = HeadRule::Exact {
            span: self.sink.saturating_add(self.recent),
        };
        let mut rules = vec![narrow; self.gates.len()];
        for &head in &order[..full.min(order.len())] {
            rules[head] = HeadRule::DENSE;
        }
        let kv_heads = self.gates.len() / self.layers.max(1);
        masks_of(&rules, kv_heads, context, MaskGrid::new(self.sink, 1)?)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use moa_format::{Family, RopeConfig};

    use super::*;

    pub(crate) fn config() -> ModelConfig {
        ModelConfig {
            family: Family::Llama,
            layers: 2,
            hidden_dim: 32,
            ffn_dim: 32,
            heads: 4,
            kv_heads: 2,
            head_dim: 8,
            vocab_size: 100,
            rms_norm_eps: 1e-5,
            rope: RopeConfig {
                theta: 1e4,
                scaling: None,
            },
            tied_embeddings: false,
            qkv_bias: false,
            max_context: 4096,
            bos: None,
            eos: vec![],
        }
    }

    #[test]
    fn the_largest_gates_stay_open() {
        let folder = tempfile::tempdir().unwrap();
        let write =
            |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        write(
            "config.json",
            r#"{"sink_size": 16, "recent_size": 48, "lr": 0.02}"#,
        );
        write("full_attention_heads.tsv", "0.9\t0.1\n0.2\t0.95\n");
        let pattern = DuoPattern::open(folder.path(), &config()).unwrap();
        let full = |full| -> Vec<bool> {
            let masks = pattern.masks(full, 1000).unwrap();
            masks.iter().map(|mask| mask.attends(999, 500)).collect()
        };
        assert_eq!(full(1), [false, false, false, true]);
        assert_eq!(full(3), [true, false, true, true]);
        assert_eq!(pattern.masks(0, 1000).unwrap().layer(0)[0].span(), 64);
        assert_eq!((pattern.full_at(0.5), pattern.full_at(1.0)), (2, 0));
        // 2 of 4 heads of 1000 tokens and 2 of 64.
        assert_eq!(pattern.full_within(2128.0, 1000), 2);
        assert_eq!(pattern.full_within(2127.0, 1000), 1);
        assert_eq!(pattern.full_within(0.0, 1000), 0);
        write("full_attention_heads.tsv", "0.9\t0.1\n");
        assert!(DuoPattern::open(folder.path(), &config()).is_err());
    }
}
