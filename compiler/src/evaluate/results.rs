//! What rows amount to: cells with intervals, contrasts between methods, effective context lengths.
//!
//! Everything is computed from rows alone, so that a file of rows can be summed up again, or together with others.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use super::run::Row;
use super::statistics::{Interval, bootstrap, mcnemar, mean, mean_at, wilson};
use super::trial::Family;

/// The score that a length must keep of a method's best to count as effective.
const EFFECTIVE: f64 = 0.9;
/// All retrieval suites together.
pub(crate) const POOLED: &str = "retrieval";

/// One method on one suite at one length.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Cell {
    pub(crate) suite: String,
    pub(crate) method: String,
    pub(crate) length: u32,
    pub(crate) context: u32,
    pub(crate) kv_density: f64,
    pub(crate) trials: usize,
    /// Right answers, where a score is 0 or 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) right: Option<usize>,
    /// Mean score of free generation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) score: Option<f64>,
    /// Wilson's interval of a share, else a bootstrap's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) interval: Option<Interval>,
    /// Mean negative log likelihood, teacher-forced, in nats a token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) nll: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) perplexity: Option<f64>,
    /// Mean divergence from the dense model in nats a token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) kl: Option<f64>,
    /// Share of answers that are the dense model's, token by token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) agreement: Option<f64>,
}

/// Two methods on the same trials.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Contrast {
    pub(crate) suite: String,
    /// All lengths together, if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) length: Option<u32>,
    pub(crate) method: String,
    pub(crate) against: String,
    pub(crate) trials: usize,
    /// Score, nll (perplexity suite) or kl of `method` minus that of `against`.
    pub(crate) difference: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) interval: Option<Interval>,
    /// Score over score; for perplexity, perplexity over perplexity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ratio: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ratio_interval: Option<Interval>,
    /// `McNemar`'s exact two-sided p, where scores are 0 or 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) p: Option<f64>,
}

/// How far a method reaches.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Effective {
    pub(crate) suite: String,
    pub(crate) method: String,
    /// Longest measured length whose score is at least nine tenths of the method's best; 0 where the best is 0.
    pub(crate) tokens: u32,
    pub(crate) best: f64,
}

/// What a run measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Summary {
    pub(crate) cells: Vec<Cell>,
    pub(crate) contrasts: Vec<Contrast>,
    pub(crate) effective: Vec<Effective>,
}

type Group<'a> = BTreeMap<(Family, u32, usize), &'a Row>;

impl Summary {
    /// Sums up rows; `baseline` is what every method is compared with, beside the others.
    pub(crate) fn of(rows: &[Row], methods: &[String], seed: u64) -> Self {
        let suites: BTreeSet<Family> = rows.iter().map(|row| row.suite).collect();
        let retrieval: Vec<Family> = suites
            .iter()
            .copied()
            .filter(|suite| suite.is_retrieval())
            .collect();
        let mut sets: Vec<(String, Vec<Family>)> = suites
            .iter()
            .map(|suite| (suite.name().to_owned(), vec![*suite]))
            .collect();
        if retrieval.len() > 1 {
            sets.push((POOLED.to_owned(), retrieval));
        }
        let mut summary = Self {
            cells: Vec::new(),
            contrasts: Vec::new(),
            effective: Vec::new(),
        };
        for (name, families) in &sets {
            let of_set: Vec<&Row> = rows
                .iter()
                .filter(|row| families.contains(&row.suite))
                .collect();
            let lengths: BTreeSet<u32> = of_set.iter().map(|row| row.length).collect();
            for method in methods {
                let mut scores = Vec::new();
                for &length in &lengths {
                    let own: Vec<&Row> = of_set
                        .iter()
                        .copied()
                        .filter(|row| row.length == length && row.method == *method)
                        .collect();
                    if let Some(cell) = cell(name, method, &own, seed) {
                        scores.extend(cell.score.map(|score| (length, score)));
                        summary.cells.push(cell);
                    }
                }
                if !scores.is_empty() && families[0] != Family::Agreement {
                    summary.effective.push(effective(name, method, &scores));
                }
            }
            for (at, against) in methods.iter().enumerate() {
                for method in &methods[at + 1..] {
                    let all = std::iter::once(None).chain(lengths.iter().copied().map(Some));
                    for length in all {
                        // Single lengths against the first method alone: the rest is in the rows.
                        if (length.is_some() && at > 0) || (lengths.len() == 1 && length.is_some())
                        {
                            continue;
                        }
                        let group = |wanted: &str| -> Group<'_> {
                            of_set
                                .iter()
                                .filter(|row| {
                                    row.method == wanted
                                        && length.is_none_or(|length| row.length == length)
                                })
                                .map(|row| ((row.suite, row.length, row.index), *row))
                                .collect()
                        };
                        summary.contrasts.extend(contrast(
                            name,
                            length,
                            (method, group(method)),
                            (against, group(against)),
                            seed,
                        ));
                    }
                }
            }
        }
        summary
    }

    /// Markdown tables for people.
    pub(crate) fn tables(&self) -> String {
        let number = |value: Option<f64>, digits: usize| {
            value.map_or_else(String::new, |value| format!("{value:.digits$}"))
        };
        let span = |interval: Option<Interval>| {
            interval.map_or_else(String::new, |interval| {
                format!(" [{:.3}, {:.3}]", interval.low, interval.high)
            })
        };
        let mut text = String::from(
            "| suite | length | method | kv_density | trials | score [95%] | nll | perplexity | kl | as dense |\n|---|---|---|---|---|---|---|---|---|---|\n",
        );
        for cell in &self.cells {
            let _ = writeln!(
                text,
                "| {} | {} | {} | {:.4} | {} | {}{} | {} | {} | {} | {} |",
                cell.suite,
                cell.length,
                cell.method,
                cell.kv_density,
                cell.trials,
                number(cell.score, 3),
                span(cell.interval),
                number(cell.nll, 4),
                number(cell.perplexity, 3),
                number(cell.kl, 5),
                number(cell.agreement, 3),
            );
        }
        if !self.contrasts.is_empty() {
            text += "\n| suite | length | method | against | trials | difference [95%] | ratio [95%] | McNemar p |\n|---|---|---|---|---|---|---|---|\n";
            for contrast in &self.contrasts {
                let length = contrast
                    .length
                    .map_or_else(|| "all".to_owned(), |length| length.to_string());
                let _ = writeln!(
                    text,
                    "| {} | {length} | {} | {} | {} | {:+.4}{} | {}{} | {} |",
                    contrast.suite,
                    contrast.method,
                    contrast.against,
                    contrast.trials,
                    contrast.difference,
                    span(contrast.interval),
                    number(contrast.ratio, 4),
                    span(contrast.ratio_interval),
                    number(contrast.p, 4),
                );
            }
        }
        if !self.effective.is_empty() {
            text += "\n| suite | method | effective context | best score |\n|---|---|---|---|\n";
            for effective in &self.effective {
                let _ = writeln!(
                    text,
                    "| {} | {} | {} | {:.3} |",
                    effective.suite, effective.method, effective.tokens, effective.best
                );
            }
        }
        text
    }
}

/// Means of what rows have; `None` without rows.
fn cell(suite: &str, method: &str, rows: &[&Row], seed: u64) -> Option<Cell> {
    let first = *rows.first()?;
    let all = |value: fn(&Row) -> Option<f64>| -> Option<Vec<f64>> {
        rows.iter().map(|row| value(row)).collect()
    };
    let scores = all(|row| row.score);
    let binary = rows.iter().all(|row| row.suite.is_binary());
    let right = scores
        .as_ref()
        .filter(|_| binary)
        .map(|scores| scores.iter().filter(|score| **score == 1.0).count());
    let interval = match (&scores, right) {
        (_, Some(right)) => Some(wilson(right, rows.len())),
        (Some(scores), None) => bootstrap(scores.len(), seed, |at| mean_at(scores, at)),
        (None, None) => None,
    };
    let nll = all(|row| row.nll).map(|values| mean(&values));
    Some(Cell {
        suite: suite.to_owned(),
        method: method.to_owned(),
        length: first.length,
        context: first.context,
        kv_density: first.kv_density,
        trials: rows.len(),
        right,
        score: scores.map(|scores| mean(&scores)),
        interval,
        nll,
        perplexity: nll
            .filter(|_| first.suite == Family::Perplexity)
            .map(f64::exp),
        kl: all(|row| row.kl).map(|values| mean(&values)),
        agreement: all(|row| row.agrees.map(f64::from)).map(|values| mean(&values)),
    })
}

fn effective(suite: &str, method: &str, scores: &[(u32, f64)]) -> Effective {
    let best = scores.iter().map(|(_, score)| *score).fold(0.0, f64::max);
    let tokens = scores
        .iter()
        .filter(|(_, score)| best > 0.0 && *score >= EFFECTIVE * best)
        .map(|(length, _)| *length)
        .max();
    Effective {
        suite: suite.to_owned(),
        method: method.to_owned(),
        tokens: tokens.unwrap_or(0),
        best,
    }
}

/// A contrast over the trials that both methods took.
fn contrast(
    suite: &str,
    length: Option<u32>,
    (method, own): (&str, Group<'_>),
    (against, other): (&str, Group<'_>),
    seed: u64,
) -> Option<Contrast> {
    let pairs: Vec<(&Row, &Row)> = own
        .iter()
        .filter_map(|(key, row)| Some((*row, *other.get(key)?)))
        .collect();
    let first = pairs.first()?.0.suite;
    let value = |row: &Row| match first {
        Family::Perplexity => row.nll,
        Family::Kl => row.kl,
        _ => row.score,
    };
    let own: Vec<f64> = pairs
        .iter()
        .map(|pair| value(pair.0))
        .collect::<Option<_>>()?;
    let other: Vec<f64> = pairs
        .iter()
        .map(|pair| value(pair.1))
        .collect::<Option<_>>()?;
    let difference = |at: &[usize]| mean_at(&own, at) - mean_at(&other, at);
    let ratio = |at: &[usize]| match first {
        Family::Perplexity => difference(at).exp(),
        _ => mean_at(&own, at) / mean_at(&other, at),
    };
    let whole: Vec<usize> = (0..pairs.len()).collect();
    let has_ratio = first != Family::Kl && ratio(&whole).is_finite();
    let only = |a: &[f64], b: &[f64]| {
        a.iter()
            .zip(b)
            .filter(|(a, b)| **a == 1.0 && **b != 1.0)
            .count()
    };
    Some(Contrast {
        suite: suite.to_owned(),
        length,
        method: method.to_owned(),
        against: against.to_owned(),
        trials: pairs.len(),
        difference: difference(&whole),
        interval: bootstrap(pairs.len(), seed, difference),
        ratio: has_ratio.then(|| ratio(&whole)),
        ratio_interval: if has_ratio {
            bootstrap(pairs.len(), seed, ratio)
        } else {
            None
        },
        p: first
            .is_binary()
            .then(|| mcnemar(only(&own, &other), only(&other, &own))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(suite: Family, method: &str, length: u32, index: usize, score: f64) -> Row {
        let text = suite == Family::Perplexity;
        Row {
            key: String::new(),
            suite,
            method: method.into(),
            length,
            context: length + 32,
            kv_density: 0.5,
            index,
            seed: 0,
            source: None,
            depth: None,
            score: (!text).then_some(score),
            nll: Some(if text { score } else { 2.0 }),
            kl: None,
            agrees: None,
            expected: vec![],
            answer: None,
            tokens: vec![],
        }
    }

    #[test]
    fn cells_contrasts_and_reach() {
        let mut rows = Vec::new();
        for index in 0..20 {
            for length in [1024, 2048] {
                rows.push(row(Family::Passkey, "dense", length, index, 1.0));
                let half = f64::from(u8::from(length == 1024 || index % 2 == 0));
                rows.push(row(Family::Passkey, "plan", length, index, half));
                rows.push(row(Family::Needle, "dense", length, index, 0.0));
                rows.push(row(Family::Needle, "plan", length, index, 0.0));
                let nll = 1.0 + index as f64;
                rows.push(row(Family::Perplexity, "dense", length, index, nll));
                rows.push(row(Family::Perplexity, "plan", length, index, nll + 0.1));
            }
        }
        let summary = Summary::of(&rows, &["dense".into(), "plan".into()], 0);
        let find = |suite: &str, method: &str, length: u32| {
            summary
                .cells
                .iter()
                .find(|cell| cell.suite == suite && cell.method == method && cell.length == length)
                .unwrap()
        };
        assert_eq!(find("passkey", "plan", 2048).right, Some(10));
        assert_eq!(find("retrieval", "plan", 2048).trials, 40);
        assert_eq!(find("passkey", "plan", 2048).interval, Some(wilson(10, 20)));
        let contrast = |suite: &str, length| {
            summary
                .contrasts
                .iter()
                .find(|contrast| contrast.suite == suite && contrast.length == length)
                .unwrap()
        };
        let passkey = contrast("passkey", Some(2048));
        assert_eq!((passkey.difference, passkey.ratio), (-0.5, Some(0.5)));
        assert_eq!(passkey.p, Some(mcnemar(0, 10)));
        assert_eq!(contrast("needle", None).ratio, None, "nothing over nothing");
        let perplexity = contrast("perplexity", None);
        assert!((perplexity.ratio.unwrap() - 0.1_f64.exp()).abs() < 1e-12);
        let interval = perplexity.ratio_interval.unwrap();
        assert!(interval.high - interval.low < 1e-9, "paired: {interval:?}");
        let reach = |suite: &str, method: &str| {
            let found = summary.effective.iter();
            let mut found = found.filter(|one| one.suite == suite && one.method == method);
            found.next().unwrap().tokens
        };
        assert_eq!(
            (reach("passkey", "dense"), reach("passkey", "plan")),
            (2048, 1024)
        );
        assert_eq!(reach("needle", "dense"), 0);
        let tables = summary.tables();
        assert!(
            tables.contains("| passkey | 2048 | plan |") && tables.contains("effective context")
        );
    }
}
