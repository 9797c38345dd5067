//! Small models and bundles, and random numbers that are the same everywhere.

use std::collections::BTreeMap;

use moa_format::{
    DType, Family, FileEntry, Manifest, ModelConfig, Plan, Provenance, RopeConfig, ShardBuilder,
    TensorRole, TokenizerFiles, pack, plan_entry, tensors,
};
use moa_mask::HeadRule;

/// `SplitMix64`.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in [0, 1).
    pub(crate) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Roughly normal, by twelve uniforms.
    pub(crate) fn normal(&mut self) -> f32 {
        ((0..12).map(|_| self.unit()).sum::<f64>() - 6.0) as f32
    }

    pub(crate) fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next() as u8).collect()
    }
}

pub(crate) fn config() -> ModelConfig {
    ModelConfig {
        family: Family::Llama,
        layers: 2,
        hidden_dim: 64,
        ffn_dim: 96,
        heads: 4,
        kv_heads: 2,
        head_dim: 16,
        vocab_size: 40,
        rms_norm_eps: 1e-5,
        rope: RopeConfig {
            theta: 10_000.0,
            scaling: None,
        },
        tied_embeddings: true,
        qkv_bias: false,
        max_context: 3000,
        bos: Some(1),
        eos: vec![2, 0],
    }
}

pub(crate) fn plan() -> Plan {
    let elastic = |alpha, beta| HeadRule::Elastic { alpha, beta };
    let mut provenance = Provenance {
        tool: Some("moa-compile 0.1.0".into()),
        seed: Some(7),
        lengths: vec![1024, 2048],
        ..Provenance::default()
    };
    provenance.budgets.insert(2048, 0.5);
    Plan {
        name: "half".into(),
        sink: 64,
        block: 64,
        rules: vec![
            vec![elastic(0.0, 0.5), elastic(-256.0, 0.875)],
            vec![HeadRule::Exact { span: 129 }, elastic(512.0, 0.0)],
        ],
        provenance,
    }
}

/// A whole bundle: the manifest and every other file.
pub(crate) fn bundle() -> (Manifest, BTreeMap<String, Vec<u8>>) {
    let config = config();
    let mut files = BTreeMap::new();
    let mut builder = ShardBuilder::new();
    let mut random = Random(1);
    for spec in tensors(&config) {
        let dtype = match spec.role {
            TensorRole::Embedding | TensorRole::LmHead => DType::Q8,
            TensorRole::Linear => DType::Q4,
            TensorRole::Norm | TensorRole::Bias => DType::F32,
        };
        builder.begin_tensor(&spec, dtype, "F32").unwrap();
        while let Some(rows) = builder.next_rows() {
            let weights: Vec<f32> = (0..rows.len() * spec.cols as usize)
                .map(|_| random.normal())
                .collect();
            let piece = pack(dtype, &weights, spec.cols).unwrap();
            if let Some(shard) = builder.push_piece(&piece).unwrap() {
                files.insert(shard.entry.file, shard.data);
            }
        }
    }
    let (last, weights) = builder.finish().unwrap();
    let last = last.unwrap();
    files.insert(last.entry.file, last.data);
    let (entry, plan_bytes) = plan_entry(&plan(), &config).unwrap();
    files.insert(entry.file.clone(), plan_bytes);
    let mut listed = Vec::new();
    for (file, text) in [
        ("tokenizer.json", "{}"),
        ("tokenizer_config.json", "{\"chat_template\": \"\"}"),
        ("README.md", "# tiny\n"),
    ] {
        listed.push(FileEntry::of(file, text.as_bytes()));
        files.insert(file.into(), text.into());
    }
    let manifest = Manifest {
        name: "tiny".into(),
        model: config,
        tokenizer: Some(TokenizerFiles {
            tokenizer: "tokenizer.json".into(),
            config: "tokenizer_config.json".into(),
        }),
        default_plan: "half".into(),
        plans: vec![entry],
        weights,
        files: listed,
        provenance: Provenance {
            license: Some("Apache-2.0".into()),
            seed: Some(7),
            ..Provenance::default()
        },
    };
    (manifest, files)
}
