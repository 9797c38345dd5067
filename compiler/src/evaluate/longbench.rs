//! Records in the form of `LongBench`: a long context, a question, answers, and the name of the data set.
//!
//! ```json
//! {"input": "Who ..?", "context": "..", "answers": ["..", ".."], "dataset": "qasper", "all_classes": null}
//! ```
//!
//! The name of the data set decides the prompt and the metric; `"metric": "f1"` and `"prompt": ".."` (with `{context}` and
//! `{input}`) decide instead. A prompt longer than the length keeps its beginning and its end, as the benchmark does;
//! records shorter than half the length are left to shorter lengths. Nothing is downloaded.

use std::path::Path;

use rand::seq::SliceRandom as _;
use serde::Deserialize;

use super::metrics::Metric;
use super::trial::{Check, Family, Trial};
use crate::calibrate::{Tokenize, prompt_ids, response_ids, seeded};
use crate::files::read_bounded;
use crate::hint::Told;

const FILE_LIMIT: u64 = 2 << 30;

/// Records of one file.
#[derive(Debug)]
pub(crate) struct Records(Vec<Record>);

#[derive(Debug, Deserialize)]
struct Line {
    #[serde(default)]
    input: String,
    context: String,
    #[serde(default)]
    answers: Vec<String>,
    #[serde(default)]
    answer: Option<String>,
    #[serde(default)]
    dataset: String,
    #[serde(default)]
    metric: Option<Metric>,
    #[serde(default)]
    prompt: Option<String>,
}

#[derive(Debug)]
struct Record {
    before: String,
    context: String,
    after: String,
    answers: Vec<String>,
    dataset: String,
    metric: Metric,
    max_new: u32,
}

/// What a data set asks for: metric, tokens of an answer, prompt.
fn form(dataset: &str) -> (Metric, u32, &'static str) {
    const QUESTION: &str = "Answer the question based on the given passages. Only give me the answer and do not output any other words.\n\nThe following are given passages.\n{context}\n\nAnswer the question based on the given passages. Only give me the answer and do not output any other words.\n\nQuestion: {input}\nAnswer:";
    const SUMMARY: &str = "You are given a long text. Write a one-page summary of it.\n\nText:\n{context}\n\nNow, write a one-page summary of the text.\n\nSummary:";
    let name = dataset.strip_suffix("_e").unwrap_or(dataset);
    match name {
        "gov_report" | "multi_news" | "vcsum" => (Metric::RougeL, 256, SUMMARY),
        "qmsum" => (
            Metric::RougeL,
            256,
            "You are given a meeting transcript and a query containing a question or instruction. Answer the query in one or more sentences.\n\nTranscript:\n{context}\n\nNow, answer the query based on the above meeting transcript in one or more sentences.\n\nQuery: {input}\nAnswer:",
        ),
        "samsum" => (
            Metric::RougeL,
            128,
            "Summarize the dialogue into a few short sentences. The following are some examples.\n\n{context}\n\n{input}",
        ),
        "trec" | "lsht" => (
            Metric::Accuracy,
            64,
            "Please determine the type of the question below. Here are some examples of questions.\n\n{context}\n{input}",
        ),
        "passage_retrieval_en" | "passage_count" => (
            Metric::Accuracy,
            32,
            "Here are paragraphs, each with its number.\n\n{context}\n\nThe following is an abstract, or a question about the paragraphs.\n\n{input}\n\nGive the number that answers it. The answer is: ",
        ),
        "lcc" | "repobench-p" => (
            Metric::EditSimilarity,
            64,
            "Please complete the code given below.\n{context}{input}Next line of code:\n",
        ),
        _ => (Metric::F1, 64, QUESTION),
    }
}

impl Records {
    /// Reads a file of one JSON record a line.
    pub(crate) fn open(path: &Path) -> anyhow::Result<Self> {
        let bytes = read_bounded(path, FILE_LIMIT)?;
        let bad = |number: usize, why: String| {
            anyhow::Error::from(Told::new(
                format!("{} line {number}: {why}", path.display()),
                r#"each line is {"input":..,"context":..,"answers":[..],"dataset":..}"#,
            ))
        };
        let mut records = Vec::new();
        for (index, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
            if line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            let line: Line =
                serde_json::from_slice(line).map_err(|error| bad(index + 1, error.to_string()))?;
            let (metric, max_new, prompt) = form(&line.dataset);
            let prompt = line
                .prompt
                .unwrap_or_else(|| prompt.to_owned())
                .replace("{input}", &line.input);
            let (before, after) = prompt
                .split_once("{context}")
                .ok_or_else(|| bad(index + 1, "the prompt has no {context}".into()))?;
            let mut answers = line.answers;
            answers.extend(line.answer);
            if answers.is_empty() {
                return Err(bad(index + 1, "there is no answer".into()));
            }
            records.push(Record {
                before: before.to_owned(),
                context: line.context,
                after: after.to_owned(),
                answers,
                dataset: line.dataset,
                metric: line.metric.unwrap_or(metric),
                max_new,
            });
        }
        if records.is_empty() {
            return Err(bad(1, "the file holds no record".into()));
        }
        Ok(Self(records))
    }

    /// Up to `count` records of at least half of `length`, with prompts of at most `length` tokens.
    pub(crate) fn trials(
        &self,
        tokenizer: &dyn Tokenize,
        length: u32,
        count: usize,
        seed: u64,
    ) -> anyhow::Result<Vec<Trial>> {
        let mut order: Vec<&Record> = self.0.iter().collect();
        order.shuffle(&mut seeded(
            "moa longbench evaluation 1",
            "",
            length,
            seed,
            0,
        ));
        let mut trials = Vec::new();
        for record in order {
            if trials.len() == count {
                break;
            }
            let Some(ids) = record.prompt(tokenizer, length as usize)? else {
                continue;
            };
            let answer = record.answers.first().map_or("", String::as_str);
            trials.push(Trial {
                family: Family::Longbench,
                index: trials.len(),
                ids,
                gold: response_ids(tokenizer, &[("user", "")], answer)?,
                check: Check::Metric(record.metric, record.answers.clone()),
                depth: None,
                max_new: record.max_new,
                source: Some(record.dataset.clone()),
            });
        }
        if trials.is_empty() {
            return Err(Told::new(
                format!("no record is long enough for length {length}"),
                "choose shorter --lengths",
            )
            .into());
        }
        Ok(trials)
    }
}

impl Record {
    /// The prompt, its context cut in the middle to `length` tokens; `None` where it is shorter than half of that.
    fn prompt(&self, tokenizer: &dyn Tokenize, length: usize) -> anyhow::Result<Option<Vec<u32>>> {
        let render = |context: &str| {
            let content = format!("{}{context}{}", self.before, self.after);
            prompt_ids(tokenizer, &[("user", &content)])
        };
        let whole = render(&self.context)?;
        if whole.len() * 2 < length {
            return Ok(None);
        }
        if whole.len() <= length {
            return Ok(Some(whole));
        }
        // Cut by characters, in the share of tokens that must go, until it fits.
        let chars: Vec<char> = self.context.chars().collect();
        let mut keep = chars.len();
        let mut tokens = whole.len();
        while tokens > length && keep > 0 {
            keep = (keep * length / tokens).min(keep - 1);
            let head = keep.div_ceil(2);
            let tail = keep - head;
            let context: String = chars[..head]
                .iter()
                .chain(&chars[chars.len() - tail..])
                .collect();
            let ids = render(&context)?;
            tokens = ids.len();
            if tokens <= length {
                return Ok(Some(ids));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calibrate::tokenize::tests::Words;

    fn records(lines: &str) -> anyhow::Result<Records> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl");
        std::fs::write(&path, lines).unwrap();
        Records::open(&path)
    }

    #[test]
    fn data_sets_have_their_metrics_and_prompts_are_cut_in_the_middle() {
        let context = (0..900)
            .map(|i| format!("w{i}"))
            .collect::<Vec<_>>()
            .join(" ");
        let line = |dataset: &str, extra: &str| {
            format!(
                r#"{{"input": "why", "context": "{context}", "answers": ["so"], "dataset": "{dataset}"{extra}}}"#
            )
        };
        let text = [
            line("qasper", ""),
            line("gov_report_e", ""),
            line("lcc", ""),
            line(
                "trec",
                r#", "metric": "f1", "prompt": "A {context} B {input}""#,
            ),
        ]
        .join("\n");
        let records = records(&text).unwrap();
        let metrics: Vec<Metric> = records.0.iter().map(|record| record.metric).collect();
        assert_eq!(
            metrics,
            [
                Metric::F1,
                Metric::RougeL,
                Metric::EditSimilarity,
                Metric::F1
            ]
        );
        assert_eq!(records.0[3].after, " B why");
        let words = Words::default();
        let trials = records.trials(&words, 600, 9, 0).unwrap();
        assert_eq!(trials.len(), 4);
        let id = |word: &str| words.encode(word, false).unwrap()[0];
        for trial in &trials {
            assert!(trial.ids.len() <= 600 && trial.ids.len() > 500);
            assert!(trial.ids.contains(&id("w0")) && trial.ids.contains(&id("w899")));
            assert!(!trial.ids.contains(&id("w450")));
        }
        assert!(records.trials(&words, 8000, 9, 0).is_err(), "too short");
    }

    #[test]
    fn bad_files_name_their_line() {
        for (text, line) in [
            ("", "line 1"),
            ("{\"context\": \"x\"}", "line 1"),
            ("\n{\"answers\": []}", "line 2"),
            (
                "{\"context\": \"x\", \"answer\": \"y\", \"prompt\": \"z\"}",
                "line 1",
            ),
        ] {
            let error = records(text).unwrap_err().to_string();
            assert!(error.contains(line), "{error}");
        }
    }
}
