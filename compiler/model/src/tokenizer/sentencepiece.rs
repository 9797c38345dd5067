//! SentencePiece's `tokenizer.model`, which Llama 1, Llama 2 and Vicuna folders carry in place of a
//! tokenizer.json.
//!
//! The file is a protocol buffer; the few fields that matter are read here, in bounds. It deliberately
//! refuses Unigram models and normalizers that change text, which none of these models has.

use std::path::Path;

use super::{TokenKind, TokenType, Vocabulary};
use crate::{ModelError, Result};

/// Reads the pieces; first and last token follow the model's defaults until its folder says otherwise.
pub(crate) fn read(path: &Path, bytes: &[u8]) -> Result<Vocabulary> {
    let damaged = |what: &str| ModelError::BadField {
        origin: path.to_owned(),
        field: what.to_owned(),
        expected: "a SentencePiece model".into(),
        got: "damaged or something else".into(),
    };
    let (mut tokens, mut types, mut scores) = (Vec::new(), Vec::new(), Vec::new());
    let mut trainer = Trainer {
        model_type: 1,
        unknown: 0,
        bos: 1,
        eos: 2,
        padding: -1,
    };
    let mut add_space_prefix = true;
    let mut squeezes_spaces = true;
    let mut changes_text = false;
    let mut model = Fields { bytes };
    while let Some((number, value)) = model.next().ok_or_else(|| damaged("the document"))? {
        match (number, value) {
            (1, Field::Bytes(piece)) => {
                let (token, score, kind) = read_piece(piece).ok_or_else(|| damaged("a piece"))?;
                tokens.push(token);
                scores.push(score);
                types.push(kind);
            }
            (2, Field::Bytes(spec)) => trainer.read(spec).ok_or_else(|| damaged("trainer_spec"))?,
            (3, Field::Bytes(spec)) => {
                let mut fields = Fields { bytes: spec };
                while let Some((number, value)) =
                    fields.next().ok_or_else(|| damaged("normalizer_spec"))?
                {
                    match (number, value) {
                        (2, Field::Bytes(map)) => changes_text = !map.is_empty(),
                        (3, Field::Number(flag)) => add_space_prefix = flag != 0,
                        (4, Field::Number(flag)) => squeezes_spaces = flag != 0,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    if tokens.is_empty() {
        return Err(damaged("the list of pieces"));
    }
    if trainer.model_type != 2 {
        return Err(ModelError::unsupported(
            "SentencePiece model type",
            trainer.model_type.to_string(),
            "2 (BPE)",
        ));
    }
    if changes_text || squeezes_spaces {
        return Err(ModelError::unsupported(
            "SentencePiece normalizer",
            "one that changes text",
            "identity",
        ));
    }
    Ok(Vocabulary {
        kind: TokenKind::SentencePiece { scores },
        tokens,
        types,
        merges: Vec::new(),
        bos: u32::try_from(trainer.bos).ok(),
        eos: u32::try_from(trainer.eos).ok(),
        unknown: u32::try_from(trainer.unknown).ok(),
        padding: u32::try_from(trainer.padding).ok(),
        add_bos: true,
        add_eos: false,
        add_space_prefix,
    })
}

struct Trainer {
    model_type: i64,
    unknown: i64,
    bos: i64,
    eos: i64,
    padding: i64,
}

impl Trainer {
    fn read(&mut self, spec: &[u8]) -> Option<()> {
        let mut fields = Fields { bytes: spec };
        while let Some((number, value)) = fields.next()? {
            let Field::Number(value) = value else {
                continue;
            };
            // Ids are signed: -1, in ten bytes, means none.
            let value = value.cast_signed();
            match number {
                3 => self.model_type = value,
                40 => self.unknown = value,
                41 => self.bos = value,
                42 => self.eos = value,
                43 => self.padding = value,
                _ => {}
            }
        }
        Some(())
    }
}

fn read_piece(piece: &[u8]) -> Option<(String, f32, TokenType)> {
    let (mut token, mut score, mut kind) = (None, 0.0, TokenType::Normal);
    let mut fields = Fields { bytes: piece };
    while let Some((number, value)) = fields.next()? {
        match (number, value) {
            (1, Field::Bytes(text)) => token = Some(String::from_utf8(text.to_vec()).ok()?),
            (2, Field::Four(bits)) => {
                score = Some(f32::from_le_bytes(bits)).filter(|score| score.is_finite())?;
            }
            (3, Field::Number(number)) => {
                kind = TokenType::from_number(i64::try_from(number).ok()?)?;
            }
            _ => {}
        }
    }
    Some((token?, score, kind))
}

enum Field<'a> {
    Number(u64),
    Four([u8; 4]),
    Bytes(&'a [u8]),
    Other,
}

/// The fields of a message, in the order of the file.
struct Fields<'a> {
    bytes: &'a [u8],
}

impl<'a> Fields<'a> {
    /// The next field's number and value; the inner `None` at the end, the outer one where the bytes are no message.
    #[expect(
        clippy::option_option,
        reason = "damage and end are two things, and the caller words the error"
    )]
    fn next(&mut self) -> Option<Option<(u64, Field<'a>)>> {
        if self.bytes.is_empty() {
            return Some(None);
        }
        let tag = self.varint()?;
        let value = match tag & 7 {
            0 => Field::Number(self.varint()?),
            1 => {
                self.take(8)?;
                Field::Other
            }
            2 => {
                let len = usize::try_from(self.varint()?).ok()?;
                Field::Bytes(self.take(len)?)
            }
            5 => Field::Four(self.take(4)?.try_into().ok()?),
            _ => return None,
        };
        Some(Some((tag >> 3, value)))
    }

    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.bytes.split_at_checked(len)?;
        self.bytes = rest;
        Some(taken)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.bytes.split_first()?;
            self.bytes = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        let len = u8::try_from(bytes.len()).unwrap();
        [&[number << 3 | 2, len], bytes].concat()
    }

    fn piece(text: &str, score: f32, kind: u8) -> Vec<u8> {
        let body = [
            field(1, text.as_bytes()),
            vec![2 << 3 | 5],
            score.to_le_bytes().to_vec(),
            vec![3 << 3, kind],
        ]
        .concat();
        field(1, &body)
    }

    fn model(model_type: u8, squeezes: u8) -> Vec<u8> {
        [
            piece("<unk>", 0.0, 2),
            piece("<s>", 0.0, 3),
            piece("</s>", 0.0, 3),
            piece("<0x0A>", 0.0, 6),
            piece("\u{2581}", -1.0, 1),
            field(2, &[3 << 3, model_type]),
            field(3, &[4 << 3, squeezes]),
        ]
        .concat()
    }

    #[test]
    fn pieces_and_flags_are_read() {
        let vocabulary = read(Path::new("t"), &model(2, 0)).unwrap();
        assert_eq!(vocabulary.tokens[4], "\u{2581}");
        assert_eq!(vocabulary.types[1], TokenType::Control);
        assert_eq!(
            (vocabulary.bos, vocabulary.eos, vocabulary.padding),
            (Some(1), Some(2), None)
        );
        let TokenKind::SentencePiece { scores } = vocabulary.kind else {
            panic!()
        };
        assert_eq!(scores[4], -1.0);
    }

    #[test]
    fn other_kinds_are_refused_and_damage_is_no_panic() {
        assert!(matches!(
            read(Path::new("t"), &model(1, 0)),
            Err(ModelError::Unsupported { .. })
        ));
        assert!(matches!(
            read(Path::new("t"), &model(2, 1)),
            Err(ModelError::Unsupported { .. })
        ));
        let whole = model(2, 0);
        for cut in 0..whole.len() {
            let _ = read(Path::new("t"), &whole[..cut]);
        }
        for at in 0..whole.len() {
            for flip in 0..8 {
                let mut bytes = whole.clone();
                bytes[at] ^= 1 << flip;
                let _ = read(Path::new("t"), &bytes);
            }
        }
        assert!(read(Path::new("t"), b"").is_err());
        assert!(read(Path::new("t"), b"not a protocol buffer").is_err());
    }
}
