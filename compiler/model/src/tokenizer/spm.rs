//! SentencePiece BPE: Llama 1 and 2, Vicuna, Mistral.
//!
//! SentencePiece merges the pair whose piece scores best; BPE wants an ordered list of merges. Every piece
//! and every way to cut it into two pieces gives one merge, the best-scored pieces first: the list that
//! Hugging Face's converter writes. It deliberately reads no Unigram model, which has no such list.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::vocabulary::TokenType;
use super::{Parts, Vocabulary};
use crate::{ModelError, Result};

/// Pieces are at most 16 characters in the published models, runs of spaces included; cutting one is quadratic.
const MAX_PIECE_BYTES: usize = 512;

pub(super) fn parts(vocabulary: &Vocabulary, scores: &[f32]) -> Result<Parts> {
    if scores.len() != vocabulary.tokens.len() {
        let expected = format!("{}, one for each token", vocabulary.tokens.len());
        return Err(ModelError::tokenizer(
            "number of scores",
            expected,
            scores.len().to_string(),
        ));
    }
    let merges: Vec<Value> = merges(vocabulary, scores)?
        .into_iter()
        .map(|(left, right)| json!([left, right]))
        .collect();
    let unknown = vocabulary.named(vocabulary.unknown).or_else(|| {
        let id = vocabulary
            .types
            .iter()
            .position(|&kind| kind == TokenType::Unknown)?;
        vocabulary.tokens.get(id).map(String::as_str)
    });

    let space =
        |content: &str| json!({"type": "Replace", "pattern": {"String": " "}, "content": content});
    let mut normalizers = vec![space("\u{2581}")];
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if vocabulary.add_space_prefix {
        normalizers.insert(0, json!({"type": "Prepend", "prepend": "\u{2581}"}));
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    Ok(Parts {
        normalizer: json!({"type": "Sequence", "normalizers": normalizers}),
        pre_tokenizer: Value::Null,
        decoder: json!({"type": "Sequence", "decoders": decoders}),
        model: json!({
            "type": "BPE",
            "dropout": null,
            "unk_token": unknown,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": true,
            "byte_fallback": true,
            "ignore_merges": false,
            "vocab": vocabulary.vocab(),
            "merges": merges,
        }),
    })
}

/// The merges, best first.
fn merges<'a>(vocabulary: &'a Vocabulary, scores: &[f32]) -> Result<Vec<(&'a str, &'a str)>> {
    let pieces = || {
        vocabulary
            .tokens
            .iter()
            .zip(&vocabulary.types)
            .enumerate()
            .filter(|(_, (_, kind))| **kind == TokenType::Normal)
    };
    let ids: HashMap<&str, usize> = pieces()
        .map(|(id, (piece, _))| (piece.as_str(), id))
        .collect();
    let mut merges = Vec::new();
    for (id, (piece, _)) in pieces() {
        if piece.len() > MAX_PIECE_BYTES {
            let got = format!("{} bytes", piece.len());
            return Err(ModelError::tokenizer(
                format!("piece {id}"),
                format!("at most {MAX_PIECE_BYTES} bytes"),
                got,
            ));
        }
        let mut cuts = Vec::new();
        for (at, _) in piece.char_indices().skip(1) {
            let (left, right) = piece.split_at(at);
            if let (Some(&left_id), Some(&right_id)) = (ids.get(left), ids.get(right)) {
                cuts.push(((left_id, right_id), left, right));
            }
        }
        cuts.sort_unstable();
        merges.extend(
            cuts.into_iter()
                .map(|(_, left, right)| (scores[id], left, right)),
        );
    }
    // Stable, as the converter's: equal scores and lengths keep the order of the pieces.
    let length = |text: &str| text.chars().count();
    merges.sort_by(|(a, left_a, right_a), (b, left_b, right_b)| {
        b.total_cmp(a)
            .then(length(left_b).cmp(&length(left_a)))
            .then(length(right_b).cmp(&length(right_a)))
    });
    Ok(merges
        .into_iter()
        .map(|(_, left, right)| (left, right))
        .collect())
}
