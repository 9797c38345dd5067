//! GGUF files: names, row order, every type, rope factors, against folders and against candle's reader.

use candle_core::quantized::{GgmlDType, QTensor, gguf_file};
use candle_core::{Device, Tensor};
use moa_format::{Family, ModelConfig, RopeScaling};
use moa_model::{Checkpoint, SourceFormat, SourceType};

use crate::making::{GgufTensor, Meta, gguf, interleave, shape, weights};

#[test]
fn weights_come_back_under_hugging_faces_names_and_row_order() {
    let folder = tempfile::tempdir().unwrap();
    for family in [Family::Llama, Family::Qwen2] {
        for tied_embeddings in [false, true] {
            let config = ModelConfig {
                tied_embeddings,
                ..shape(family)
            };
            let weights = weights(&config, 11);
            let path = folder.path().join("tiny.gguf");
            gguf(&config, &weights).write(&path);
            let checkpoint = Checkpoint::open(&path).unwrap();
            assert_eq!(
                checkpoint.config(),
                &config,
                "1e-5 is read as written, not as its f32 neighbor"
            );
            assert_eq!(checkpoint.format(), SourceFormat::Gguf);
            assert_eq!(
                (checkpoint.name(), checkpoint.license()),
                ("Tiny", Some("apache-2.0"))
            );
            for (name, values) in &weights {
                assert_eq!(
                    &checkpoint.tensor(name).unwrap().to_f32().unwrap(),
                    values,
                    "{name}"
                );
            }
            // Rows alone are the same rows, where the file interleaves them too.
            let name = "model.layers.1.self_attn.q_proj.weight";
            let rows = checkpoint
                .tensor_rows(name, 5..14)
                .unwrap()
                .to_f32()
                .unwrap();
            assert_eq!(rows, weights[name][5 * 32..14 * 32]);
        }
    }
}

#[test]
fn the_interleaving_matters() {
    let config = shape(Family::Llama);
    let weights = weights(&config, 11);
    let q = &weights["model.layers.0.self_attn.q_proj.weight"];
    assert_ne!(
        &interleave(q, 4, 32),
        q,
        "or the test above would pass without undoing it"
    );
}

/// Each type on a Q projection, whose rows are permuted as raw blocks, and on the embedding.
#[test]
fn every_type_is_read_as_candle_reads_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    // Rows of 256, so that the types with blocks of 256 fit.
    let config = ModelConfig {
        hidden_dim: 256,
        ffn_dim: 256,
        heads: 8,
        kv_heads: 4,
        head_dim: 32,
        ..shape(Family::Llama)
    };
    let weights = weights(&config, 13);
    for (number, dtype, source_type) in [
        (0, GgmlDType::F32, SourceType::F32),
        (1, GgmlDType::F16, SourceType::F16),
        (30, GgmlDType::BF16, SourceType::Bf16),
        (2, GgmlDType::Q4_0, SourceType::Q4_0),
        (3, GgmlDType::Q4_1, SourceType::Q4_1),
        (6, GgmlDType::Q5_0, SourceType::Q5_0),
        (7, GgmlDType::Q5_1, SourceType::Q5_1),
        (8, GgmlDType::Q8_0, SourceType::Q8_0),
        (12, GgmlDType::Q4K, SourceType::Q4K),
        (13, GgmlDType::Q5K, SourceType::Q5K),
        (14, GgmlDType::Q6K, SourceType::Q6K),
    ] {
        let quantize = |values: &[f32], rows: usize| {
            let tensor = Tensor::from_slice(values, (rows, 256), &Device::Cpu).unwrap();
            QTensor::quantize(&tensor, dtype).unwrap()
        };
        let mut file = gguf(&config, &weights);
        for (gguf_name, name, rows, heads) in [
            (
                "blk.0.attn_q.weight",
                "model.layers.0.self_attn.q_proj.weight",
                256,
                8,
            ),
            ("token_embd.weight", "model.embed_tokens.weight", 48, 0),
        ] {
            let values = &weights[name];
            let stored = if heads > 0 {
                interleave(values, heads, 256)
            } else {
                values.clone()
            };
            let place = file
                .tensors
                .iter_mut()
                .find(|tensor| tensor.name == gguf_name)
                .unwrap();
            place.kind = number;
            place.bytes = quantize(&stored, rows).data().unwrap().into_owned();
        }
        file.write(&path);

        let checkpoint = Checkpoint::open(&path).unwrap();
        for (gguf_name, name, rows) in [
            (
                "blk.0.attn_q.weight",
                "model.layers.0.self_attn.q_proj.weight",
                256,
            ),
            ("token_embd.weight", "model.embed_tokens.weight", 48),
        ] {
            let tensor = checkpoint.tensor(name).unwrap();
            assert_eq!(tensor.source_type(), source_type);
            // Rows are quantized one by one, so permuting before or after gives the same blocks.
            let expected = quantize(&weights[name], rows);
            assert_eq!(
                tensor.bytes(),
                &expected.data().unwrap()[..],
                "{source_type} {name}"
            );
            assert_eq!(tensor.bytes().len(), rows * tensor.row_bytes());
            let dequantized = expected
                .dequantize(&Device::Cpu)
                .unwrap()
                .flatten_all()
                .unwrap();
            assert_eq!(
                tensor.to_f32().unwrap(),
                dequantized.to_vec1::<f32>().unwrap(),
                "{source_type} {name}"
            );

            let mut reader = std::fs::File::open(&path).unwrap();
            let content = gguf_file::Content::read(&mut reader).unwrap();
            let theirs = content
                .tensor(&mut reader, gguf_name, &Device::Cpu)
                .unwrap();
            assert_eq!(theirs.dtype(), dtype);
            assert_eq!(theirs.data().unwrap().len(), tensor.bytes().len());
        }
    }
}

#[test]
fn rope_factors_are_taken_from_their_tensor() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    let config = shape(Family::Llama);
    let file = gguf(&config, &weights(&config, 17));
    let with_freqs = |freqs: [f32; 4]| {
        let mut file = file.clone();
        let bytes = freqs.iter().flat_map(|v| v.to_le_bytes()).collect();
        file.tensors.push(GgufTensor {
            name: "rope_freqs.weight".into(),
            shape: vec![4],
            kind: 0,
            bytes,
        });
        file.write(&path);
        Checkpoint::open(&path).map(|checkpoint| checkpoint.config().rope.scaling.clone())
    };
    assert_eq!(with_freqs([1.0; 4]).unwrap(), None);
    let divisors = vec![1.0, 1.0, 2.5, 8.0];
    assert_eq!(
        with_freqs([1.0, 1.0, 2.5, 8.0]).unwrap(),
        Some(RopeScaling::Divisors { divisors })
    );
    assert!(with_freqs([1.0, f32::NAN, 2.5, 8.0]).is_err());
    assert!(with_freqs([1.0, 0.0, 2.5, 8.0]).is_err());

    let mut linear = file.clone();
    linear
        .set("llama.rope.scaling.type", Meta::Text("linear".into()))
        .set("llama.rope.scaling.factor", Meta::F32(4.0));
    linear.write(&path);
    assert_eq!(
        Checkpoint::open(&path).unwrap().config().rope.scaling,
        Some(RopeScaling::Linear { factor: 4.0 })
    );
}

#[test]
fn end_tokens_of_chat_formats_are_found() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    let config = shape(Family::Llama);
    let mut file = gguf(&config, &weights(&config, 17));
    let tokens = ["<unk>", "<s>", "</s>", "<|im_end|>", "<|endoftext|>"]
        .map(str::to_owned)
        .to_vec();
    file.set("tokenizer.ggml.tokens", Meta::Texts(tokens));
    file.set("tokenizer.ggml.token_type", Meta::I32s(vec![2, 3, 3, 3, 1]));
    file.set("tokenizer.ggml.eot_token_id", Meta::U32(7));
    file.write(&path);
    // The last token is a normal one that happens to be called so.
    assert_eq!(Checkpoint::open(&path).unwrap().config().eos, [2, 7, 3]);
}
