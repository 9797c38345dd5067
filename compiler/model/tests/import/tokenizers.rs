//! Tokenizers built from metadata and read from folders.

use std::path::Path;

use moa_format::Family;
use moa_model::{ChatTokenizer, Checkpoint, Message, ModelError};
use serde_json::{Value, json};

use crate::making::{
    FloatType, GgufFile, Meta, Random, add_byte_level_tokenizer, config_json, folder_tensors, gguf,
    shape, weights, write_folder,
};

/// A string of letters, digits, marks and spaces from many scripts.
fn any_text(random: &mut Random) -> String {
    const RANGES: [(u32, u32); 14] = [
        (32, 95),
        (65, 26),
        (97, 26),
        (97, 26),
        (48, 10),
        (0xa0, 0x60),
        (0x391, 0x40),
        (0x660, 10),
        (0x900, 0x70),
        (0x2000, 0x30),
        (0x2460, 0x20),
        (0x4e00, 0x100),
        (0x1f600, 0x40),
        (9, 5),
    ];
    const WORDS: [&str; 12] = [
        " the", "'s", "'S", "'ll", "\r\n", "\n\n  ", "12", "\u{feff}", "\u{85}", "'\u{17f}", "<s>",
        "e\u{301}",
    ];
    (0..random.below(30))
        .map(|_| {
            let pick = random.below(RANGES.len() as u64 + 4);
            match RANGES.get(pick as usize) {
                Some(&(first, len)) => char::from_u32(first + random.below(len.into()) as u32)
                    .unwrap_or('?')
                    .to_string(),
                None => WORDS[random.below(WORDS.len() as u64) as usize].to_owned(),
            }
        })
        .collect()
}

/// Opens a tiny GGUF file after `change` has put a tokenizer into it.
pub(crate) fn from_gguf(change: impl FnOnce(&mut GgufFile)) -> moa_model::Result<Checkpoint> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    let config = shape(Family::Llama);
    let mut file = gguf(&config, &weights(&config, 1));
    change(&mut file);
    file.write(&path);
    Checkpoint::open(&path)
}

fn byte_level(pre: &str) -> Checkpoint {
    from_gguf(|file| add_byte_level_tokenizer(file, pre)).unwrap()
}

pub(crate) fn tokenizer(checkpoint: &Checkpoint) -> &ChatTokenizer {
    checkpoint.tokenizer().unwrap()
}

/// Id of a byte in the tiny vocabulary.
fn byte(byte: u8) -> u32 {
    3 + u32::from(byte)
}

#[test]
fn rules_split_digits_each_in_its_way() {
    for (pre, twelve, first) in [
        ("smollm", vec![byte(b'1'), byte(b'2')], None),
        ("qwen2", vec![byte(b'1'), byte(b'2')], None),
        ("gpt-2", vec![261], None),
        ("default", vec![261], None),
        ("llama-bpe", vec![261], Some(1)),
    ] {
        let checkpoint = byte_level(pre);
        let tokenizer = tokenizer(&checkpoint);
        assert_eq!(tokenizer.encode("12", false).unwrap(), twelve, "{pre}");
        let with_first: Vec<u32> = first.into_iter().chain(twelve).collect();
        assert_eq!(tokenizer.encode("12", true).unwrap(), with_first, "{pre}");
        assert_eq!(
            tokenizer.encode("a the", false).unwrap(),
            [byte(b'a'), 262],
            "{pre}"
        );
        assert_eq!(
            tokenizer.encode("<s>the</s>", false).unwrap(),
            [1, byte(b't'), 259, 2],
            "{pre}"
        );
        assert_eq!(tokenizer.decode(&[1, 262, 2, 259], true).unwrap(), " thehe");
        assert_eq!(
            tokenizer.decode(&[1, 262, 2], false).unwrap(),
            "<s> the</s>"
        );
        assert_eq!(
            (tokenizer.token_id("</s>"), tokenizer.token(262).as_deref()),
            (Some(2), Some("\u{120}the"))
        );
        assert_eq!((tokenizer.id_count(), tokenizer.eos_ids()), (263, &[2][..]));
    }
}

#[test]
fn every_text_survives_a_round_trip() {
    let mut random = Random(3);
    for pre in ["smollm", "gpt-2", "default", "llama-bpe"] {
        let checkpoint = byte_level(pre);
        for _ in 0..200 {
            let text = any_text(&mut random);
            let ids = tokenizer(&checkpoint).encode(&text, false).unwrap();
            assert_eq!(
                tokenizer(&checkpoint).decode(&ids, false).unwrap(),
                text,
                "{pre}"
            );
        }
    }
}

/// SmolLM2's vocabulary has no token for some bytes. One reader would drop such a character and merge what is
/// left, the other merges first: here it parts the text, for both.
#[test]
fn characters_without_bytes_are_dropped_and_part_the_text() {
    let checkpoint = from_gguf(|file| {
        add_byte_level_tokenizer(file, "smollm");
        for (key, value) in &mut file.meta {
            if let ("tokenizer.ggml.tokens", Meta::Texts(tokens)) = (key.as_str(), value) {
                tokens[byte(0x1d) as usize] = "(unused 1)".into();
                tokens[byte(0xf1) as usize] = "(unused 2)".into();
            }
        }
    })
    .unwrap();
    let encode = |text: &str| tokenizer(&checkpoint).encode(text, false).unwrap();
    assert_eq!(encode("he"), [259]);
    assert_eq!(encode("h\u{1d}e"), [byte(b'h'), byte(b'e')]);
    assert_eq!(encode("h\u{1d}"), [byte(b'h')]);
    assert!(encode("\u{1d}").is_empty());
    assert_eq!(encode("h\u{40000}e\u{7ffff}"), [byte(b'h'), byte(b'e')]);
    assert_eq!(
        encode("\u{3ffff}").len(),
        4,
        "its first byte, f0, has a token"
    );
    assert!(
        !tokenizer(&byte_level("smollm"))
            .tokenizer_json()
            .contains("Removed")
    );
}

#[test]
fn tokenizers_that_are_not_read_are_named() {
    let error = from_gguf(|file| add_byte_level_tokenizer(file, "tekken"))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("tekken") && error.contains("smollm"),
        "{error}"
    );
    let error = from_gguf(|file| {
        file.set("tokenizer.ggml.model", Meta::Text("bert".into()));
    });
    assert!(error.unwrap_err().to_string().contains("bert"));
    let checkpoint = from_gguf(|file| {
        file.set("tokenizer.ggml.model", Meta::Text("no_vocab".into()));
    });
    assert!(checkpoint.unwrap().tokenizer().is_none());
    for (key, value, words) in [
        (
            "token_type",
            Meta::I32s(vec![1; 5]),
            "number of token types is 5, expected 263",
        ),
        (
            "token_type",
            Meta::I32s(vec![9; 263]),
            "numbers from 1 to 6",
        ),
        (
            "merges",
            Meta::Texts(vec!["he".into()]),
            "two tokens with a space between",
        ),
        ("merges", Meta::Texts(vec!["x y".into()]), "tokenizer"),
        (
            "tokens",
            Meta::Texts(vec!["a".into(); 263]),
            "which is token 0 already",
        ),
        (
            "bos_token_id",
            Meta::U32(300),
            "first token is 300, expected below 263",
        ),
    ] {
        let changed = from_gguf(|file| {
            add_byte_level_tokenizer(file, "llama-bpe");
            file.set(&format!("tokenizer.ggml.{key}"), value);
        });
        let error = changed.unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
        assert!(error.hint().is_some());
    }
}

/// A SentencePiece vocabulary over a few letters, its pieces scored at random.
fn sentencepiece(random: &mut Random) -> (Vec<String>, Vec<f32>, Vec<i32>) {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).to_vec();
    tokens.extend((0..256).map(|byte| format!("<0x{byte:02X}>")));
    tokens.extend(["\u{2581}", "a", "b", "c"].map(str::to_owned));
    while tokens.len() < 300 {
        let first_word = random.below(2) == 0;
        let letters = 2 - u64::from(first_word) + random.below(4);
        let mut piece = if first_word {
            "\u{2581}".to_owned()
        } else {
            String::new()
        };
        piece.extend((0..letters).map(|_| ['a', 'b', 'c'][random.below(3) as usize]));
        if !tokens.contains(&piece) {
            tokens.push(piece);
        }
    }
    let types = (0..300)
        .map(|id| {
            if id == 0 {
                2
            } else if id < 3 {
                3
            } else if id < 259 {
                6
            } else {
                1
            }
        })
        .collect();
    // Distinct scores: SentencePiece and the merge list may order equal ones differently.
    let mut scores: Vec<f32> = (0..300).map(|rank| -(rank as f32)).collect();
    for at in (1..300).rev() {
        scores.swap(at, random.below(at as u64 + 1) as usize);
    }
    (tokens, scores, types)
}

/// SentencePiece itself: merge the neighbors whose piece scores best, leftmost first, until none is left.
fn sentencepiece_encode(text: &str, tokens: &[String], scores: &[f32]) -> Vec<u32> {
    let mut parts: Vec<String> = format!("\u{2581}{}", text.replace(' ', "\u{2581}"))
        .chars()
        .map(String::from)
        .collect();
    let id = |piece: &str| {
        tokens
            .iter()
            .skip(259)
            .position(|token| token == piece)
            .map(|at| at + 259)
    };
    loop {
        let mut best: Option<(f32, usize)> = None;
        for at in 0..parts.len().saturating_sub(1) {
            if let Some(id) = id(&format!("{}{}", parts[at], parts[at + 1]))
                && best.is_none_or(|(score, _)| scores[id] > score)
            {
                best = Some((scores[id], at));
            }
        }
        let Some((_, at)) = best else { break };
        let right = parts.remove(at + 1);
        parts[at].push_str(&right);
    }
    parts
        .iter()
        .flat_map(|part| match id(part) {
            Some(id) => vec![id as u32],
            None => part.bytes().map(|byte| 3 + u32::from(byte)).collect(),
        })
        .collect()
}

#[test]
fn sentencepiece_merges_as_sentencepiece_does() {
    let mut random = Random(5);
    for _ in 0..4 {
        let (tokens, scores, types) = sentencepiece(&mut random);
        let checkpoint = from_gguf(|file| {
            file.set("tokenizer.ggml.model", Meta::Text("llama".into()));
            file.set("tokenizer.ggml.tokens", Meta::Texts(tokens.clone()));
            file.set("tokenizer.ggml.scores", Meta::F32s(scores.clone()));
            file.set("tokenizer.ggml.token_type", Meta::I32s(types.clone()));
        });
        let checkpoint = checkpoint.unwrap();
        let tokenizer = tokenizer(&checkpoint);
        for _ in 0..300 {
            let text: String = (0..1 + random.below(24))
                .map(|_| {
                    ['a', 'b', 'c', ' ', 'a', 'b', 'c', '\u{e9}', '\u{1f600}']
                        [random.below(9) as usize]
                })
                .collect();
            let ids = tokenizer.encode(&text, false).unwrap();
            assert_eq!(
                ids,
                sentencepiece_encode(&text, &tokens, &scores),
                "{text:?}"
            );
            assert_eq!(tokenizer.decode(&ids, true).unwrap(), text);
        }
        let with_first = tokenizer.encode("ab", true).unwrap();
        assert_eq!(with_first[0], 1, "Llama adds its first token");
        assert_eq!(with_first[1..], tokenizer.encode("ab", false).unwrap());
        // A space goes before the text after a special token too, as with the published tokenizer.json.
        let after = tokenizer.encode("</s>ab", false).unwrap();
        assert_eq!(after[0], 2);
        assert_eq!(after[1..], tokenizer.encode("ab", false).unwrap());
    }
}

/// A folder of a tiny model with these files beside it.
fn folder_with(files: &[(&str, Vec<u8>)]) -> moa_model::Result<Checkpoint> {
    let folder = tempfile::tempdir().unwrap();
    let config = shape(Family::Llama);
    write_folder(
        folder.path(),
        &config_json(&config),
        &folder_tensors(&config, &weights(&config, 1)),
        FloatType::F32,
    );
    for (name, bytes) in files {
        std::fs::write(folder.path().join(name), bytes).unwrap();
    }
    Checkpoint::open(folder.path())
}

/// The tokenizer.json of the byte-level vocabulary with another splitting.
fn published(pre_tokenizer: Value) -> Value {
    let mut json: Value =
        serde_json::from_str(&tokenizer(&byte_level("smollm")).tokenizer_json()).unwrap();
    json["pre_tokenizer"] = pre_tokenizer;
    json["truncation"] =
        json!({"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0});
    json
}

#[test]
fn built_in_rules_written_out_mean_the_same() {
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let llama3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let mut random = Random(9);
    for (name, pre_tokenizer) in [
        ("byte level", byte_level.clone()),
        (
            "digits",
            json!({"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": true}, byte_level]}),
        ),
        (
            "runs",
            json!({"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": false}, byte_level]}),
        ),
        (
            "llama 3",
            json!({"type": "Sequence", "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": llama3}, "behavior": "Isolated", "invert": false},
                {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
            ]}),
        ),
    ] {
        let mut source = published(pre_tokenizer);
        let checkpoint =
            folder_with(&[("tokenizer.json", source.to_string().into_bytes())]).unwrap();
        source["truncation"] = Value::Null;
        let plain = tokenizers::Tokenizer::from_bytes(source.to_string()).unwrap();
        for _ in 0..300 {
            let text = any_text(&mut random);
            let ids = tokenizer(&checkpoint).encode(&text, true).unwrap();
            assert_eq!(
                ids,
                plain.encode_fast(text.as_str(), true).unwrap().get_ids(),
                "{name}: {text:?}"
            );
        }
        let shipped = tokenizer(&checkpoint).tokenizer_json();
        assert!(
            !shipped.contains("Digits")
                && !shipped.contains("\"use_regex\":true,")
                && !shipped.contains("(?i:"),
            "{name}"
        );
    }
}

#[test]
fn folders_bring_templates_and_special_tokens_in_every_published_way() {
    let json = published(
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}),
    );
    let json = json.to_string().into_bytes();
    let say = |files: &[(&str, Vec<u8>)]| {
        let checkpoint = folder_with(files).unwrap();
        tokenizer(&checkpoint).apply_chat_template(&[Message::new("user", "hi")], true)
    };
    let with = |config: Value| {
        vec![
            ("tokenizer.json", json.clone()),
            ("tokenizer_config.json", config.to_string().into_bytes()),
        ]
    };

    let text = "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}";
    let tokens = json!({"chat_template": text, "bos_token": {"content": "<s>", "special": true}, "eos_token": "</s>"});
    assert_eq!(say(&with(tokens)).unwrap(), "<s>hi</s>");
    let list = json!({"chat_template": [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]});
    assert_eq!(say(&with(list)).unwrap(), "yes");
    let mut files = with(json!({"chat_template": "old"}));
    files.push(("chat_template.jinja", b"new {{ bos_token }}".to_vec()));
    files.push((
        "special_tokens_map.json",
        br#"{"bos_token": {"content": "<s>"}}"#.to_vec(),
    ));
    assert_eq!(say(&files).unwrap(), "new <s>");
    assert!(matches!(
        say(&with(json!({"bos_token": null}))),
        Err(ModelError::NoChatTemplate)
    ));

    let checkpoint = folder_with(&with(json!({"eos_token": {"content": "<s>"}, "chat_template": [{"name": "default", "template": "t"}]}))).unwrap();
    assert_eq!(
        checkpoint.config().eos,
        [2, 1],
        "the config's end token first, then the tokenizer's own"
    );
    let shipped: Value =
        serde_json::from_str(&tokenizer(&checkpoint).tokenizer_config_json()).unwrap();
    assert_eq!(
        (&shipped["eos_token"], &shipped["chat_template"]),
        (&json!("<s>"), &json!("t"))
    );
    assert_eq!(shipped["clean_up_tokenization_spaces"], json!(false));

    let broken = folder_with(&[("tokenizer.json", b"{\"model\": 3}".to_vec())]);
    assert!(matches!(broken, Err(ModelError::Tokenization(_))));
    assert!(matches!(
        folder_with(&[("tokenizer.json", b"{".to_vec())]),
        Err(ModelError::Json { .. })
    ));
    let broken = folder_with(&with(json!({"chat_template": "{% if %}"})));
    assert!(matches!(broken, Err(ModelError::ChatTemplate { .. })));
}

/// SentencePiece's own file, as Vicuna's folder has it, gives the tokenizer that the GGUF metadata gives.
#[test]
fn a_sentencepiece_file_serves_as_well() {
    let mut random = Random(21);
    let (tokens, scores, types) = sentencepiece(&mut random);
    let from_metadata = from_gguf(|file| {
        file.set("tokenizer.ggml.model", Meta::Text("llama".into()));
        file.set("tokenizer.ggml.tokens", Meta::Texts(tokens.clone()));
        file.set("tokenizer.ggml.scores", Meta::F32s(scores.clone()));
        file.set("tokenizer.ggml.token_type", Meta::I32s(types.clone()));
    });
    let mut model = Vec::new();
    for ((token, score), kind) in tokens.iter().zip(&scores).zip(&types) {
        let text = [&[1 << 3 | 2, token.len() as u8], token.as_bytes()].concat();
        let body = [
            &text[..],
            &[2 << 3 | 5],
            &score.to_le_bytes(),
            &[3 << 3, *kind as u8],
        ]
        .concat();
        model.extend([1 << 3 | 2, body.len() as u8]);
        model.extend(body);
    }
    model.extend([2 << 3 | 2, 2, 3 << 3, 2]);
    model.extend([3 << 3 | 2, 4, 3 << 3, 1, 4 << 3, 0]);
    let config = json!({"add_bos_token": true, "added_tokens_decoder": {"300": {"content": "<pad>", "special": true}}, "pad_token": "<pad>"});
    let files = [
        ("tokenizer.model", model),
        ("tokenizer_config.json", config.to_string().into_bytes()),
    ];
    let (from_metadata, from_file) = (from_metadata.unwrap(), folder_with(&files).unwrap());
    for _ in 0..100 {
        let text: String = (0..random.below(24))
            .map(|_| ['a', 'b', 'c', ' ', '\u{e9}'][random.below(5) as usize])
            .collect();
        assert_eq!(
            tokenizer(&from_file).encode(&text, true).unwrap(),
            tokenizer(&from_metadata).encode(&text, true).unwrap()
        );
    }
    assert_eq!(tokenizer(&from_file).token_id("<pad>"), Some(300));
}

#[test]
fn nothing_is_read_beside_the_tokenizers_own_files() {
    let checkpoint = folder_with(&[("vocab.txt", b"x".to_vec())]).unwrap();
    assert!(checkpoint.tokenizer().is_none());
    assert!(Checkpoint::open_weights(Path::new("/nonexistent")).is_err());
}
