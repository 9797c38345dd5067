//! Tiny random checkpoints, written as folders and as GGUF files.

use std::collections::BTreeMap;
use std::path::Path;

use moa_format::{Family, ModelConfig, RopeConfig, TensorRole};
use serde_json::{Map, Value, json};

/// A generator that is the same everywhere (PCG-like multiply and shift).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn weight(&mut self) -> f32 {
        (self.next() as f32 / (1u64 << 31) as f32 - 0.5) * 0.25
    }
}

/// A model of 2 layers, 4 heads on 2, `head_dim` 8, unless changed.
pub(crate) fn shape(family: Family) -> ModelConfig {
    ModelConfig {
        family,
        layers: 2,
        hidden_dim: 32,
        ffn_dim: 64,
        heads: 4,
        kv_heads: 2,
        head_dim: 8,
        vocab_size: 48,
        rms_norm_eps: 1e-5,
        rope: RopeConfig {
            theta: 10_000.0,
            scaling: None,
        },
        tied_embeddings: false,
        qkv_bias: family == Family::Qwen2,
        max_context: 512,
        bos: Some(1),
        eos: vec![2],
    }
}

/// Values of every tensor, rows first, under canonical names.
pub(crate) fn weights(config: &ModelConfig, seed: u64) -> BTreeMap<String, Vec<f32>> {
    let mut random = Random(seed);
    moa_format::tensors(config)
        .into_iter()
        .map(|spec| {
            let len = spec.rows * spec.cols;
            (spec.name, (0..len).map(|_| random.weight()).collect())
        })
        .collect()
}

/// The config.json of a shape, with the newer or the older rope fields.
pub(crate) fn config_json(config: &ModelConfig) -> Value {
    let (architecture, model_type) = match config.family {
        Family::Llama => ("LlamaForCausalLM", "llama"),
        Family::Mistral => ("MistralForCausalLM", "mistral"),
        Family::Qwen2 => ("Qwen2ForCausalLM", "qwen2"),
    };
    json!({
        "architectures": [architecture],
        "model_type": model_type,
        "hidden_size": config.hidden_dim,
        "intermediate_size": config.ffn_dim,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_context,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope.theta,
        "hidden_act": "silu",
        "tie_word_embeddings": config.tied_embeddings,
        "bos_token_id": config.bos,
        "eos_token_id": config.eos,
    })
}

/// Tensor types that a folder may hold.
#[derive(Clone, Copy)]
pub(crate) enum FloatType {
    F32,
    F16,
    Bf16,
}

/// A safetensors file, written by hand: the reader under test shares no code with it.
pub(crate) fn safetensors(tensors: &[(String, Vec<u64>, Vec<f32>)], float: FloatType) -> Vec<u8> {
    let (mut header, mut data) = (Map::new(), Vec::new());
    for (name, shape, values) in tensors {
        let start = data.len();
        for &value in values {
            match float {
                FloatType::F32 => data.extend(value.to_le_bytes()),
                FloatType::F16 => data.extend(half::f16::from_f32(value).to_le_bytes()),
                FloatType::Bf16 => data.extend(half::bf16::from_f32(value).to_le_bytes()),
            }
        }
        let dtype = match float {
            FloatType::F32 => "F32",
            FloatType::F16 => "F16",
            FloatType::Bf16 => "BF16",
        };
        header.insert(
            name.clone(),
            json!({"dtype": dtype, "shape": shape, "data_offsets": [start, data.len()]}),
        );
    }
    let header = Value::Object(header).to_string();
    [
        &(header.len() as u64).to_le_bytes()[..],
        header.as_bytes(),
        &data,
    ]
    .concat()
}

/// The tensors of a model in the shapes that folders give them.
pub(crate) fn folder_tensors(
    config: &ModelConfig,
    weights: &BTreeMap<String, Vec<f32>>,
) -> Vec<(String, Vec<u64>, Vec<f32>)> {
    moa_format::tensors(config)
        .into_iter()
        .map(|spec| {
            let shape = match spec.role {
                TensorRole::Norm | TensorRole::Bias => vec![u64::from(spec.cols)],
                _ => vec![u64::from(spec.rows), u64::from(spec.cols)],
            };
            let values = weights[&spec.name].clone();
            (spec.name, shape, values)
        })
        .collect()
}

/// Writes config.json and one model.safetensors.
pub(crate) fn write_folder(
    folder: &Path,
    json: &Value,
    tensors: &[(String, Vec<u64>, Vec<f32>)],
    float: FloatType,
) {
    std::fs::create_dir_all(folder).unwrap();
    std::fs::write(folder.join("config.json"), json.to_string()).unwrap();
    std::fs::write(
        folder.join("model.safetensors"),
        safetensors(tensors, float),
    )
    .unwrap();
}

/// A GGUF metadata value.
#[derive(Clone)]
pub(crate) enum Meta {
    U32(u32),
    F32(f32),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    I32s(Vec<i32>),
    F32s(Vec<f32>),
}

/// A GGUF tensor: dimensions rows first, GGUF's type number, raw blocks.
#[derive(Clone)]
pub(crate) struct GgufTensor {
    pub(crate) name: String,
    pub(crate) shape: Vec<u64>,
    pub(crate) kind: u32,
    pub(crate) bytes: Vec<u8>,
}

/// Metadata and tensors of a GGUF file in the making.
#[derive(Clone, Default)]
pub(crate) struct GgufFile {
    pub(crate) meta: Vec<(String, Meta)>,
    pub(crate) tensors: Vec<GgufTensor>,
}

impl GgufFile {
    /// Sets or replaces a key.
    pub(crate) fn set(&mut self, key: &str, value: Meta) -> &mut Self {
        self.meta.retain(|(other, _)| other != key);
        self.meta.push((key.into(), value));
        self
    }

    pub(crate) fn remove(&mut self, key: &str) -> &mut Self {
        self.meta.retain(|(other, _)| other != key);
        self
    }

    /// The header and, from the second number on, the data.
    pub(crate) fn to_bytes(&self) -> (Vec<u8>, usize) {
        let mut out = b"GGUF\x03\0\0\0".to_vec();
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.meta.len() as u64).to_le_bytes());
        let text = |out: &mut Vec<u8>, text: &str| {
            out.extend((text.len() as u64).to_le_bytes());
            out.extend(text.as_bytes());
        };
        for (key, value) in &self.meta {
            text(&mut out, key);
            let array = |out: &mut Vec<u8>, kind: u32, len: usize| {
                out.extend(9u32.to_le_bytes());
                out.extend(kind.to_le_bytes());
                out.extend((len as u64).to_le_bytes());
            };
            match value {
                Meta::U32(v) => out.extend([4u32.to_le_bytes(), v.to_le_bytes()].concat()),
                Meta::F32(v) => out.extend([6u32.to_le_bytes(), v.to_le_bytes()].concat()),
                Meta::Bool(v) => out.extend([&7u32.to_le_bytes()[..], &[u8::from(*v)]].concat()),
                Meta::Text(v) => {
                    out.extend(8u32.to_le_bytes());
                    text(&mut out, v);
                }
                Meta::Texts(v) => {
                    array(&mut out, 8, v.len());
                    v.iter().for_each(|v| text(&mut out, v));
                }
                Meta::I32s(v) => {
                    array(&mut out, 5, v.len());
                    v.iter().for_each(|v| out.extend(v.to_le_bytes()));
                }
                Meta::F32s(v) => {
                    array(&mut out, 6, v.len());
                    v.iter().for_each(|v| out.extend(v.to_le_bytes()));
                }
            }
        }
        let mut offset = 0;
        for tensor in &self.tensors {
            text(&mut out, &tensor.name);
            out.extend(u32::try_from(tensor.shape.len()).unwrap().to_le_bytes());
            tensor
                .shape
                .iter()
                .rev()
                .for_each(|dim| out.extend(dim.to_le_bytes()));
            out.extend(tensor.kind.to_le_bytes());
            out.extend((offset as u64).to_le_bytes());
            offset += tensor.bytes.len().next_multiple_of(32);
        }
        out.resize(out.len().next_multiple_of(32), 0);
        let header = out.len();
        for tensor in &self.tensors {
            out.extend(&tensor.bytes);
            out.resize(out.len().next_multiple_of(32), 0);
        }
        (out, header)
    }

    pub(crate) fn write(&self, path: &Path) {
        std::fs::write(path, self.to_bytes().0).unwrap();
    }
}

/// Rows of Q or K as llama.cpp's converter writes them: `reshape(heads, 2, head_dim/2, cols).swapaxes(1, 2)`.
pub(crate) fn interleave(values: &[f32], heads: usize, cols: usize) -> Vec<f32> {
    let head_dim = values.len() / heads / cols;
    let mut out = Vec::with_capacity(values.len());
    for head in 0..heads {
        for pair in 0..head_dim / 2 {
            for half in 0..2 {
                let row = head * head_dim + half * head_dim / 2 + pair;
                out.extend(&values[row * cols..(row + 1) * cols]);
            }
        }
    }
    out
}

/// A model as a converter would write it, in F32.
pub(crate) fn gguf(config: &ModelConfig, weights: &BTreeMap<String, Vec<f32>>) -> GgufFile {
    let arch = if config.family == Family::Qwen2 {
        "qwen2"
    } else {
        "llama"
    };
    let mut file = GgufFile::default();
    file.set("general.architecture", Meta::Text(arch.into()));
    file.set("general.name", Meta::Text("Tiny".into()));
    file.set("general.license", Meta::Text("apache-2.0".into()));
    for (key, value) in [
        ("block_count", config.layers),
        ("context_length", config.max_context),
        ("embedding_length", config.hidden_dim),
        ("feed_forward_length", config.ffn_dim),
        ("attention.head_count", config.heads),
        ("attention.head_count_kv", config.kv_heads),
        ("attention.key_length", config.head_dim),
        ("rope.dimension_count", config.head_dim),
    ] {
        file.set(&format!("{arch}.{key}"), Meta::U32(value));
    }
    file.set(
        &format!("{arch}.rope.freq_base"),
        Meta::F32(config.rope.theta as f32),
    );
    file.set(
        &format!("{arch}.attention.layer_norm_rms_epsilon"),
        Meta::F32(config.rms_norm_eps as f32),
    );
    file.set("tokenizer.ggml.bos_token_id", Meta::U32(1));
    file.set("tokenizer.ggml.eos_token_id", Meta::U32(2));
    for (name, shape, values) in folder_tensors(config, weights) {
        let values = match (arch, name.rsplit('.').nth(1)) {
            ("llama", Some("q_proj")) => {
                interleave(&values, config.heads as usize, config.hidden_dim as usize)
            }
            ("llama", Some("k_proj")) => interleave(
                &values,
                config.kv_heads as usize,
                config.hidden_dim as usize,
            ),
            _ => values,
        };
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        file.tensors.push(GgufTensor {
            name: converted_name(&name),
            shape,
            kind: 0,
            bytes,
        });
    }
    file
}

/// The converter's name, by its own table of substitutions.
fn converted_name(name: &str) -> String {
    let mut name = name.replace("model.layers.", "blk.");
    for (from, to) in [
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
        ("post_attention_layernorm", "ffn_norm"),
        ("input_layernorm", "attn_norm"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ] {
        name = name.replace(from, to);
    }
    name
}

/// A byte-level vocabulary: the 256 byte characters, two merges, two control tokens at the front.
pub(crate) fn add_byte_level_tokenizer(file: &mut GgufFile, pre: &str) {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).to_vec();
    let mut types = vec![2, 3, 3];
    let mut next = 256;
    for byte in 0..256u32 {
        let printable = matches!(byte, 33..=126 | 161..=172 | 174..=255);
        let code = if printable { byte } else { next };
        next += u32::from(!printable);
        tokens.push(char::from_u32(code).unwrap().to_string());
        types.push(1);
    }
    tokens.extend(["he", "\u{120}t", "12", "\u{120}the"].map(str::to_owned));
    types.extend([1; 4]);
    let merges = ["h e", "\u{120} t", "1 2", "\u{120}t he"]
        .map(str::to_owned)
        .to_vec();
    file.set("tokenizer.ggml.model", Meta::Text("gpt2".into()));
    file.set("tokenizer.ggml.pre", Meta::Text(pre.into()));
    file.set("tokenizer.ggml.tokens", Meta::Texts(tokens));
    file.set("tokenizer.ggml.token_type", Meta::I32s(types));
    file.set("tokenizer.ggml.merges", Meta::Texts(merges));
    file.set("tokenizer.chat_template", Meta::Text("{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m['content'] | trim }}\n{% endfor %}".into()));
}
