//! Records of a jsonl file: `{"prompt","response"}`, `{"messages":[..]}` or `{"ids":[..],"response_start":k}`.

use rand::seq::SliceRandom as _;
use serde::Deserialize;

use super::{
    CalibrationError, Result, Sample, Tokenize, fit_middle, prompt_ids, reserved_for, response_ids,
    seeded,
};

const DEFAULT_KIND: &str = "record";

/// The records of a file, tokenized once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Records {
    records: Vec<Record>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Record {
    prompt: Vec<u32>,
    /// Empty where the dense model is to write it.
    response: Vec<u32>,
    kind: String,
}

#[derive(Debug, Deserialize)]
struct Line {
    prompt: Option<String>,
    response: Option<String>,
    messages: Option<Vec<LineMessage>>,
    ids: Option<Vec<u32>>,
    response_start: Option<usize>,
    kind: Option<String>,
}

#[derive(Debug, Deserialize)]
struct LineMessage {
    role: String,
    content: String,
}

impl Records {
    /// Reads one record a line; empty lines are skipped. Every id that stands in the file must be below `vocab_size`.
    ///
    /// # Errors
    ///
    /// The first line that is no record, by its number; a file without records; text without a tokenizer.
    pub fn parse(bytes: &[u8], tokenizer: Option<&dyn Tokenize>, vocab_size: u32) -> Result<Self> {
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        let mut records = Vec::new();
        for (at, line) in bytes.split(|&byte| byte == b'\n').enumerate() {
            if line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            records.push(Record::parse(line, at + 1, tokenizer, vocab_size)?);
        }
        if records.is_empty() {
            return Err(CalibrationError::Empty);
        }
        Ok(Self { records })
    }

    /// Up to `count` samples of each kind that serve `length`, chosen and ordered by `seed`. A record longer than
    /// `length` loses the middle of its prompt; one shorter than nine tenths of it does not serve.
    ///
    /// # Errors
    ///
    /// No record serves; the error names the longest.
    pub fn samples(&self, length: u32, count: usize, seed: u64) -> Result<Vec<Sample>> {
        let mut serving: Vec<Sample> = self
            .records
            .iter()
            .filter_map(|record| fit_middle(&record.prompt, &record.response, &record.kind, length))
            .collect();
        if serving.is_empty() {
            let whole = |record: &Record| {
                record.prompt.len() + reserved_for(&record.response, length as usize)
            };
            let longest = self.records.iter().map(whole).max().unwrap_or(0);
            let needed = (length as usize * 9).div_ceil(10);
            return Err(if longest < needed {
                CalibrationError::TooShort {
                    length,
                    needed,
                    longest,
                }
            } else {
                CalibrationError::NoRoom { length }
            });
        }
        serving.shuffle(&mut seeded("moa calibration", "jsonl", length, seed, 0));
        let mut kept: Vec<Sample> = Vec::new();
        for sample in serving {
            if kept
                .iter()
                .filter(|other| other.kind == sample.kind)
                .count()
                < count
            {
                kept.push(sample);
            }
        }
        Ok(kept)
    }
}

impl Record {
    fn parse(
        bytes: &[u8],
        line: usize,
        tokenizer: Option<&dyn Tokenize>,
        vocab_size: u32,
    ) -> Result<Self> {
        let bad = |reason: String| CalibrationError::BadLine { line, reason };
        if bytes.trim_ascii_start().first() != Some(&b'{') {
            return Err(bad("expected a JSON object".into()));
        }
        let parsed: Line = serde_json::from_slice(bytes).map_err(|error| {
            // The parser sees one line and calls it line 1.
            let message = error.to_string();
            let reason = message
                .split(" at line 1 column")
                .next()
                .unwrap_or(&message);
            bad(format!("{reason} (column {})", error.column()))
        })?;
        let kind = parsed.kind.unwrap_or_else(|| DEFAULT_KIND.to_owned());
        let text = || tokenizer.ok_or(CalibrationError::NoTokenizer { line: Some(line) });
        match (parsed.prompt, parsed.messages, parsed.ids) {
            (Some(prompt), None, None) => {
                let messages = [("user", prompt.as_str())];
                let response = parsed.response.as_deref();
                Self::of_text(text()?, &messages, response, kind)
            }
            (None, Some(messages), None) => {
                let mut messages: Vec<(&str, &str)> = messages
                    .iter()
                    .map(|message| (message.role.as_str(), message.content.as_str()))
                    .collect();
                let response = messages
                    .pop_if(|(role, _)| *role == "assistant")
                    .map(|(_, content)| content);
                if messages.is_empty() {
                    return Err(bad("expected a message before the response".into()));
                }
                Self::of_text(text()?, &messages, response, kind)
            }
            (None, None, Some(ids)) => {
                if let Some(id) = ids.iter().find(|&&id| id >= vocab_size) {
                    return Err(bad(format!(
                        "id {id} is outside the vocabulary of {vocab_size}"
                    )));
                }
                let start = parsed
                    .response_start
                    .ok_or_else(|| bad("expected response_start beside ids".into()))?;
                if start == 0 || start > ids.len() {
                    return Err(bad(format!(
                        "response_start is {start}, expected 1 to {} (the number of ids)",
                        ids.len()
                    )));
                }
                let (prompt, response) = ids.split_at(start);
                Ok(Self {
                    prompt: prompt.to_vec(),
                    response: response.to_vec(),
                    kind,
                })
            }
            _ => Err(bad(
                "expected exactly one of prompt, messages and ids".into()
            )),
        }
    }

    fn of_text(
        tokenizer: &dyn Tokenize,
        messages: &[(&str, &str)],
        response: Option<&str>,
        kind: String,
    ) -> Result<Self> {
        let prompt = prompt_ids(tokenizer, messages)?;
        let response = match response {
            Some(response) if !response.is_empty() => response_ids(tokenizer, messages, response)?,
            _ => Vec::new(),
        };
        Ok(Self {
            prompt,
            response,
            kind,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::tokenize::tests::{VOCAB_SIZE, Words};
    use super::*;

    fn parse(text: &str) -> Result<Records> {
        Records::parse(text.as_bytes(), Some(&Words::default()), VOCAB_SIZE)
    }

    fn ids(count: usize, start: usize) -> String {
        let ids: Vec<String> = (0..count).map(|id| id.to_string()).collect();
        format!(r#"{{"ids":[{}],"response_start":{start}}}"#, ids.join(","))
    }

    #[test]
    fn the_three_forms_are_read() {
        let words = Words::default();
        let records = parse(concat!(
            "\u{feff}{\"prompt\":\"why is it so\",\"response\":\"it is\"}\r\n",
            "\n   \n",
            "{\"messages\":[{\"role\":\"system\",\"content\":\"be kind\"},{\"role\":\"user\",\"content\":\"hi\"},",
            "{\"role\":\"assistant\",\"content\":\"hello\"}],\"kind\":\"chat\",\"extra\":1}\n",
            "{\"ids\":[5,6,7],\"response_start\":2}"
        ))
        .unwrap();
        let encode = |text| words.encode(text, false).unwrap();
        assert_eq!(
            records.records[0].prompt,
            encode("<user>why is it so<end><assistant>")
        );
        assert_eq!(records.records[0].response, encode("it is<end>"));
        assert_eq!(records.records[0].kind, "record");
        assert_eq!(
            records.records[1].prompt,
            encode("<system>be kind<end><user>hi<end><assistant>")
        );
        assert_eq!(records.records[1].response, encode("hello<end>"));
        assert_eq!(records.records[1].kind, "chat");
        assert_eq!(records.records[2].prompt, [5, 6]);
        assert_eq!(records.records[2].response, [7]);
    }

    #[test]
    fn a_missing_response_is_marked() {
        let long = "word ".repeat(60);
        for line in [
            format!(r#"{{"prompt":"{long}"}}"#),
            format!(r#"{{"prompt":"{long}","response":null}}"#),
            format!(r#"{{"prompt":"{long}","response":""}}"#),
            format!(r#"{{"messages":[{{"role":"user","content":"{long}"}}]}}"#),
            ids(70, 70),
        ] {
            let samples = parse(&line).unwrap().samples(128, 4, 0).unwrap();
            assert!(samples[0].needs_response(), "{line}");
            assert!(samples[0].ids.len() <= 128 - 64, "room is left to write it");
        }
    }

    #[test]
    fn bad_lines_are_named_by_their_number() {
        for (line, reason) in [
            ("{\"prompt\":", "EOF while parsing a value (column 10)"),
            ("not json", "expected a JSON object"),
            ("[]", "expected a JSON object"),
            ("42", "expected a JSON object"),
            ("{}", "expected exactly one of prompt, messages and ids"),
            (
                r#"{"prompt":"a","ids":[1],"response_start":1}"#,
                "expected exactly one of prompt, messages and ids",
            ),
            (
                r#"{"prompt":7}"#,
                "invalid type: integer `7`, expected a string (column 11)",
            ),
            (r#"{"ids":[1,2]}"#, "expected response_start beside ids"),
            (
                r#"{"ids":[1,2],"response_start":3}"#,
                "response_start is 3, expected 1 to 2 (the number of ids)",
            ),
            (
                r#"{"ids":[1,2],"response_start":0}"#,
                "response_start is 0, expected 1 to 2 (the number of ids)",
            ),
            (
                r#"{"ids":[1,9999999],"response_start":1}"#,
                "id 9999999 is outside the vocabulary of 1048576",
            ),
            (
                r#"{"ids":[-1],"response_start":1}"#,
                "invalid value: integer `-1`, expected u32 (column 10)",
            ),
            (
                r#"{"messages":[]}"#,
                "expected a message before the response",
            ),
            (
                r#"{"messages":[{"role":"assistant","content":"x"}]}"#,
                "expected a message before the response",
            ),
            (
                r#"{"messages":[{"role":"user"}]}"#,
                "missing field `content` (column 28)",
            ),
        ] {
            let text = format!("{}\n\n{line}\n", ids(3, 1));
            let error = parse(&text).unwrap_err();
            assert_eq!(error.to_string(), format!("calibration line 3: {reason}"));
            assert!(error.hint().is_some());
        }
        let error =
            Records::parse(b"\n{\"prompt\":\"\xff\"}", Some(&Words::default()), 10).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("calibration line 2: invalid unicode code point"),
            "{error}"
        );
    }

    #[test]
    fn empty_files_and_texts_without_tokenizer_are_refused() {
        for empty in ["", "\n\n", "\u{feff}", "  \r\n"] {
            assert!(matches!(parse(empty), Err(CalibrationError::Empty)));
        }
        let text = format!("{}\n{{\"prompt\":\"x\"}}", ids(3, 1));
        let error = Records::parse(text.as_bytes(), None, 10).unwrap_err();
        assert_eq!(
            error.to_string(),
            "calibration line 2 holds text, and the model has no tokenizer"
        );
        assert!(Records::parse(ids(3, 1).as_bytes(), None, 10).is_ok());
    }

    #[test]
    fn too_short_names_the_longest() {
        let records = parse(&format!("{}\n{}\n{}", ids(50, 10), ids(80, 70), ids(20, 1))).unwrap();
        assert_eq!(records.samples(88, 9, 0).unwrap().len(), 1);
        let error = records.samples(100, 9, 0).unwrap_err();
        assert_eq!(
            error.to_string(),
            "no calibration record serves length 100: expected at least 90 tokens, the longest has 80"
        );
        assert_eq!(
            error.hint().as_deref(),
            Some("give longer records, or profile lengths up to 88 with --lengths")
        );
        let error = parse(&ids(80, 1)).unwrap().samples(79, 9, 0).unwrap_err();
        assert!(
            matches!(error, CalibrationError::NoRoom { length: 79 }),
            "{error}"
        );
    }

    #[test]
    fn a_huge_record_loses_its_middle() {
        let records = parse(&ids(200_000, 199_990)).unwrap();
        let sample = records.samples(1000, 1, 0).unwrap().remove(0);
        assert_eq!(sample.ids.len(), 1000);
        assert_eq!(sample.response_start, 990);
        assert_eq!(sample.ids[..3], [0, 1, 2]);
        assert_eq!(
            sample.ids[494..496],
            [494, 199_495],
            "the cut is in the middle"
        );
        assert_eq!(sample.ids[990..], (199_990..200_000).collect::<Vec<u32>>());
    }

    #[test]
    fn unicode_survives() {
        let text = "{\"prompt\":\"Где библиотека? 図書館は どこ 🙂 \\u00e9\",\"response\":\"там\"}";
        let records = parse(text).unwrap();
        let words = Words::default();
        assert_eq!(
            records.records[0].prompt,
            words
                .encode(
                    "<user>Где библиотека? 図書館は どこ 🙂 é<end><assistant>",
                    false
                )
                .unwrap()
        );
    }

    #[test]
    fn seeds_choose_and_kinds_are_counted_apart() {
        let mut lines: Vec<String> = (0..20).map(|at| ids(100 + at, 90)).collect();
        lines.push(ids(100, 50).replace("{\"ids\"", "{\"kind\":\"other\",\"ids\""));
        let records = parse(&lines.join("\n")).unwrap();
        let samples = records.samples(100, 3, 1).unwrap();
        assert_eq!(samples.len(), 4);
        assert_eq!(
            samples
                .iter()
                .filter(|sample| sample.kind == "other")
                .count(),
            1
        );
        assert_eq!(samples, records.samples(100, 3, 1).unwrap());
        assert_ne!(samples, records.samples(100, 3, 2).unwrap());
        assert!(samples.iter().all(|sample| sample.ids.len() <= 100));
        assert_eq!(
            records.samples(100, 99, 1).unwrap().len(),
            21,
            "a file gives what it has"
        );
    }
}
