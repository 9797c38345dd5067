//! Damaged and truncated files: every byte of the headers, one after another. A typed error or a model, never
//! a panic, and never an allocation that only a damaged length asked for.

use std::path::Path;

use moa_format::Family;
use moa_model::Checkpoint;
use serde_json::json;

use crate::making::{
    FloatType, Meta, add_byte_level_tokenizer, config_json, folder_tensors, gguf, safetensors,
    shape, weights, write_folder,
};

/// The most address space this process has had, where the system tells.
fn peak_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmPeak:"))?;
    line.split_whitespace()
        .nth(1)?
        .parse::<u64>()
        .ok()
        .map(|kib| kib << 10)
}

/// Opens the checkpoint and reads all of it, whatever comes.
fn try_all(path: &Path) -> bool {
    let Ok(checkpoint) = Checkpoint::open(path) else {
        return false;
    };
    for spec in moa_format::tensors(checkpoint.config()) {
        let _ = checkpoint.tensor(&spec.name).map(|tensor| tensor.to_f32());
    }
    true
}

/// Tries every truncation of the header and three changes of each of its bytes; the number that still opened.
fn torture(path: &Path, file: &Path, whole: &[u8], header: usize) -> usize {
    assert!(try_all(path), "the undamaged model opens");
    let before = peak_bytes();
    let mut opened = 0;
    for cut in (0..header).chain([whole.len() / 2, whole.len() - 1]) {
        std::fs::write(file, &whole[..cut]).unwrap();
        assert!(!try_all(path), "cut to {cut} of {} bytes", whole.len());
    }
    for at in 0..header {
        for mask in [0x01, 0x80, 0xff] {
            let mut bytes = whole.to_vec();
            bytes[at] ^= mask;
            std::fs::write(file, bytes).unwrap();
            opened += usize::from(try_all(path));
        }
    }
    std::fs::write(file, whole).unwrap();
    if let (Some(before), Some(after)) = (before, peak_bytes()) {
        // Other tests of this binary run beside this one, SmolLM2's among them; a length of 2^31 would show.
        assert!(
            after - before < 1 << 31,
            "address space grew by {} MiB",
            (after - before) >> 20
        );
    }
    opened
}

#[test]
fn gguf_headers() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    let config = moa_format::ModelConfig {
        layers: 1,
        ..shape(Family::Qwen2)
    };
    let mut file = gguf(&config, &weights(&config, 1));
    add_byte_level_tokenizer(&mut file, "qwen2");
    // A vocabulary of a few tokens, so that every byte of the header can have its turn.
    let tokens = ["<unk>", "<s>", "</s>", "h", "e", "he"].map(str::to_owned);
    file.set("tokenizer.ggml.tokens", Meta::Texts(tokens.to_vec()));
    file.set(
        "tokenizer.ggml.token_type",
        Meta::I32s(vec![2, 3, 3, 1, 1, 1]),
    );
    file.set("tokenizer.ggml.merges", Meta::Texts(vec!["h e".to_owned()]));
    file.set("tokenizer.ggml.add_bos_token", Meta::Bool(true));
    let (whole, header) = file.to_bytes();
    std::fs::write(&path, &whole).unwrap();
    let opened = torture(&path, &path, &whole, header);
    // Names of authors and tokens may change unnoticed; counts, types, lengths and extents may not.
    assert!(
        opened < header * 3 / 2,
        "{opened} of {} damaged headers opened",
        header * 3
    );
}

#[test]
fn safetensors_headers() {
    let folder = tempfile::tempdir().unwrap();
    let config = moa_format::ModelConfig {
        layers: 1,
        ..shape(Family::Qwen2)
    };
    let tensors = folder_tensors(&config, &weights(&config, 1));
    write_folder(
        folder.path(),
        &config_json(&config),
        &tensors,
        FloatType::F16,
    );
    let whole = safetensors(&tensors, FloatType::F16);
    let header = 8 + usize::try_from(u64::from_le_bytes(whole[..8].try_into().unwrap())).unwrap();
    let opened = torture(
        folder.path(),
        &folder.path().join("model.safetensors"),
        &whole,
        header,
    );
    assert_eq!(opened, 0, "names, shapes, types and offsets all matter");
}

#[test]
fn config_files() {
    let folder = tempfile::tempdir().unwrap();
    let config = shape(Family::Llama);
    write_folder(
        folder.path(),
        &config_json(&config),
        &folder_tensors(&config, &weights(&config, 1)),
        FloatType::F32,
    );
    let whole = config_json(&config).to_string().into_bytes();
    let file = folder.path().join("config.json");
    let opened = torture(folder.path(), &file, &whole, whole.len());
    assert!(opened < whole.len() * 3 / 2, "{opened}");
}

/// Lengths chosen to overflow or to ask for everything.
#[test]
fn safetensors_that_lie_about_their_size() {
    let folder = tempfile::tempdir().unwrap();
    let config = shape(Family::Llama);
    let tensors = folder_tensors(&config, &weights(&config, 1));
    write_folder(
        folder.path(),
        &config_json(&config),
        &tensors,
        FloatType::F32,
    );
    let file = folder.path().join("model.safetensors");
    let whole = std::fs::read(&file).unwrap();
    let error = || Checkpoint::open(folder.path()).unwrap_err().to_string();
    for len in [
        u64::MAX,
        u64::MAX - 7,
        1 << 40,
        99_999_999,
        whole.len() as u64,
    ] {
        std::fs::write(&file, [&len.to_le_bytes()[..], &whole[8..]].concat()).unwrap();
        assert!(error().contains("its header claims"), "{len}");
    }
    std::fs::write(&file, [&whole[..], &[0]].concat()).unwrap();
    assert!(error().contains("where the file ends"));
    let header =
        json!({"a": {"dtype": "F32", "shape": [u64::MAX, u64::MAX], "data_offsets": [0, 16]}})
            .to_string();
    std::fs::write(
        &file,
        [
            &(header.len() as u64).to_le_bytes()[..],
            header.as_bytes(),
            &[0; 16],
        ]
        .concat(),
    )
    .unwrap();
    assert!(error().contains("overflow"), "{}", error());
}

/// Counts, lengths and offsets of a GGUF header set to extremes.
#[test]
fn gguf_headers_that_lie_about_sizes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    let config = shape(Family::Llama);
    let (whole, header) = gguf(&config, &weights(&config, 1)).to_bytes();
    let before = peak_bytes();
    let mut refused = 0;
    for at in 8..header - 8 {
        for value in [
            u64::MAX,
            i64::MAX as u64,
            1 << 60,
            1 << 32,
            u64::from(u32::MAX),
        ] {
            let mut bytes = whole.clone();
            bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
            std::fs::write(&path, bytes).unwrap();
            refused += usize::from(!try_all(&path));
        }
    }
    assert!(refused > header * 3, "{refused} of {}", header * 5);
    if let (Some(before), Some(after)) = (before, peak_bytes()) {
        assert!(
            after - before < 1 << 31,
            "address space grew by {} MiB",
            (after - before) >> 20
        );
    }
}
