//! Model shapes: checks, names, JSON.

use moa_format::{EMBEDDING, LM_HEAD, ModelConfig, RopeScaling, TensorRole, tensors};

use crate::fixture::config;

#[test]
fn tensors_of_tied_and_untied_models() {
    let mut config = config();
    let list = tensors(&config);
    assert_eq!(list.len(), 2 + 2 * 9);
    assert_eq!(list[0].name, EMBEDDING);
    assert_eq!(config.lm_head(), EMBEDDING);
    let k_proj = list
        .iter()
        .find(|t| t.name == "model.layers.1.self_attn.k_proj.weight")
        .unwrap();
    assert_eq!(
        (k_proj.rows, k_proj.cols, k_proj.role),
        (32, 64, TensorRole::Linear)
    );
    config.tied_embeddings = false;
    config.qkv_bias = true;
    let list = tensors(&config);
    assert_eq!(list.len(), 3 + 2 * 12);
    assert_eq!(list.last().unwrap().name, LM_HEAD);
    assert_eq!(config.lm_head(), LM_HEAD);
    let bias = list
        .iter()
        .find(|t| t.name == "model.layers.0.self_attn.v_proj.bias")
        .unwrap();
    assert_eq!((bias.rows, bias.cols, bias.role), (1, 32, TensorRole::Bias));
}

#[test]
fn every_bad_number_is_named() {
    type Change = fn(&mut ModelConfig);
    let wrong: [(&str, Change); 14] = [
        ("layers", |c| c.layers = 0),
        ("layers", |c| c.layers = u32::MAX),
        ("hidden_dim", |c| c.hidden_dim = 0),
        ("ffn_dim", |c| c.ffn_dim = u32::MAX),
        ("heads", |c| c.heads = 3),
        ("kv_heads", |c| c.kv_heads = 0),
        ("head_dim", |c| c.head_dim = 15),
        ("heads * head_dim", |c| {
            (c.heads, c.head_dim) = (16384, 16384);
        }),
        ("vocab_size", |c| c.vocab_size = 0),
        ("max_context", |c| c.max_context = 0),
        ("rms_norm_eps", |c| c.rms_norm_eps = f64::NAN),
        ("theta", |c| c.rope.theta = 0.0),
        ("special token", |c| c.bos = Some(40)),
        ("special token", |c| c.eos.push(40)),
    ];
    config().check().unwrap();
    for (what, change) in wrong {
        let mut config = config();
        change(&mut config);
        let error = config.check().unwrap_err().to_string();
        assert!(error.contains(what), "{what}: {error}");
    }
}

#[test]
fn json_keeps_everything() {
    let mut config = config();
    config.rope.scaling = Some(RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_context: 8192,
    });
    config.rms_norm_eps = 0.1 + 0.2;
    let text = serde_json::to_string(&config).unwrap();
    assert!(text.contains(r#""family":"llama""#), "{text}");
    assert!(text.contains(r#""type":"llama3""#), "{text}");
    assert_eq!(serde_json::from_str::<ModelConfig>(&text).unwrap(), config);
}

#[test]
fn report_lengths_end_at_the_context() {
    let mut config = config();
    assert_eq!(config.report_lengths(), [1024, 2048, 3000]);
    config.max_context = 4096;
    assert_eq!(config.report_lengths(), [1024, 2048, 4096]);
    config.max_context = 64;
    assert_eq!(config.report_lengths(), [64]);
}
