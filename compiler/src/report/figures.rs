//! The figures of a page: which numbers go where, and what a reader should see in them.

use std::collections::{BTreeMap, BTreeSet};

use moa_format::Plan;
use moa_lm::Estimator;

use super::inputs::{Inputs, Memory};
use super::svg::{Axis, Chart, HeatMap, Point, Scale, Series, color, number, tokens};
use crate::evaluate::Cell;
use crate::printer::mib;
use crate::profile::Curves;
use crate::search::{Step, undominated};

/// A figure with its place in the page.
#[derive(Debug, Clone)]
pub(crate) struct Figure {
    /// Name of the file, letters and hyphens.
    pub(crate) name: String,
    pub(crate) title: String,
    pub(crate) caption: String,
    pub(crate) svg: String,
}

/// Contexts at which plans are shown.
const CONTEXTS: [u32; 7] = [512, 1024, 2048, 4096, 8192, 16_384, 32_768];

/// All figures that the inputs allow.
pub(crate) fn figures(inputs: &Inputs) -> Vec<Figure> {
    let mut figures = Vec::new();
    for plan in &inputs.plans {
        figures.push(spans(plan));
    }
    if !inputs.plans.is_empty() {
        figures.push(densities(&inputs.plans));
    }
    figures.extend(bytes(&inputs.memory));
    for (name, curves) in &inputs.curves {
        figures.extend(influence(name, curves));
    }
    for (name, steps) in &inputs.steps {
        figures.push(front(name, steps));
        figures.push(progress(name, steps));
    }
    for (name, summary) in &inputs.summaries {
        figures.extend(quality(name, &summary.cells));
    }
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for figure in &mut figures {
        let count = seen.entry(figure.name.clone()).or_default();
        *count += 1;
        if *count > 1 {
            figure.name = format!("{}-{count}", figure.name);
        }
    }
    figures
}

fn slug(text: &str) -> String {
    let mut slug = String::new();
    for char in text.chars() {
        if char.is_ascii_alphanumeric() {
            slug.push(char.to_ascii_lowercase());
        } else if !slug.ends_with('-') {
            slug.push('-');
        }
    }
    slug.trim_matches('-').to_owned()
}

/// The longest length that a plan was made for.
fn longest(plan: &Plan) -> u32 {
    plan.provenance
        .budgets
        .keys()
        .copied()
        .max()
        .unwrap_or(8192)
}

fn spans(plan: &Plan) -> Figure {
    let context = longest(plan);
    let layers = plan.rules.len();
    let heads = plan.rules.first().map_or(0, Vec::len);
    let mut values = Vec::new();
    let mut notes = Vec::new();
    if let Ok(grid) = plan.grid() {
        for head in 0..heads {
            for (layer, rules) in plan.rules.iter().enumerate() {
                let span = rules[head].span(context, grid).min(context);
                values.push(f64::from(span) / f64::from(context));
                notes.push(format!(
                    "layer {layer}, KV head {head}: {span} of {context} tokens"
                ));
            }
        }
    }
    let map = HeatMap {
        rows: heads,
        columns: layers,
        values,
        notes,
        row_label: "KV head",
        column_label: "layer",
        scale: (
            "0 tokens".into(),
            format!("{} tokens", tokens(f64::from(context))),
        ),
    };
    let title = format!(
        "Spans of {} at {} tokens",
        plan.name,
        tokens(f64::from(context))
    );
    Figure {
        name: slug(&format!("spans-{}", plan.name)),
        caption: "How far each KV head sees, sink included. Dark heads keep almost everything, light ones a sink and a short window.".into(),
        svg: map.render(&title),
        title,
    }
}

fn densities(plans: &[Plan]) -> Figure {
    let series = plans
        .iter()
        .enumerate()
        .map(|(index, plan)| {
            let points = CONTEXTS
                .iter()
                .filter_map(|&context| {
                    let masks = plan.masks(context).ok()?;
                    let y = moa_mask::density::kv_density(masks.iter(), context);
                    Some(Point {
                        x: f64::from(context),
                        y,
                        interval: None,
                        note: format!(
                            "{}: {} at {}",
                            plan.name,
                            number(y),
                            tokens(f64::from(context))
                        ),
                    })
                })
                .collect();
            Series::line(&plan.name, index, points)
        })
        .collect();
    let chart = Chart {
        x: Axis::new("context length M, tokens", Scale::Binary),
        y: Axis {
            most: Some(1.0),
            ..Axis::from_zero("kv_density")
        },
        series,
    };
    let title = "Share of the KV cache that is kept".to_owned();
    Figure {
        name: "density".into(),
        caption: "Mean over KV heads of min(S(M), M) / M. Below a head's smallest span nothing is hidden, so short contexts are denser.".into(),
        svg: chart.render(&title),
        title,
    }
}

fn bytes(memory: &[Memory]) -> Option<Figure> {
    let point = |context: u32, name: &str, bytes: u64| Point {
        x: f64::from(context),
        y: mib(bytes),
        interval: None,
        note: format!(
            "{name}: {} MiB at {}",
            number(mib(bytes)),
            tokens(f64::from(context))
        ),
    };
    let names: BTreeSet<&str> = memory.iter().map(|one| one.method.as_str()).collect();
    let mut series: Vec<Series> = names
        .iter()
        .enumerate()
        .map(|(index, name)| {
            let own: BTreeMap<u32, u64> = memory
                .iter()
                .filter(|one| one.method == **name)
                .map(|one| (one.context, one.kv_bytes))
                .collect();
            let points = own
                .iter()
                .map(|(&context, &bytes)| point(context, name, bytes))
                .collect();
            Series::line(name, index, points)
        })
        .collect();
    let dense: BTreeMap<u32, u64> = memory
        .iter()
        .map(|one| (one.context, one.dense_bytes))
        .collect();
    series.push(Series {
        dashed: true,
        markers: false,
        color: "#444444",
        ..Series::line(
            "a dense cache, f16",
            0,
            dense
                .iter()
                .map(|(&context, &bytes)| point(context, "dense", bytes))
                .collect(),
        )
    });
    let chart = Chart {
        x: Axis::new("context length M, tokens", Scale::Binary),
        y: Axis::from_zero("KV memory, MiB"),
        series,
    };
    let title = "KV memory by context".to_owned();
    (!memory.is_empty()).then(|| Figure {
        name: "kv-bytes".into(),
        caption: "Exact bytes of sinks, rings, their slack and the prefill scratch, f16. The dashed line is a dense cache without slack or scratch.".into(),
        svg: chart.render(&title),
        title,
    })
}

/// Curves of the heads that matter most, least and in between, at the longest profiled length.
fn influence(name: &str, curves: &Curves) -> Option<Figure> {
    let (&length, of_length) = curves.lengths.iter().next_back()?;
    let estimator = curves.estimator().unwrap_or(Estimator::JointPositive);
    let index = estimator.index();
    let bins = curves.bins(length);
    let heads = curves.layers * curves.kv_heads;
    let mean = curves.mean(of_length, index, heads * bins);
    let first = curves.grid.min_span().div_ceil(curves.grid.block()).max(1) as usize - 1;
    let need = |head: usize| mean[head * bins + first.min(bins - 1)];
    let mut order: Vec<usize> = (0..heads).collect();
    order.sort_by(|&a, &b| need(b).total_cmp(&need(a)).then(a.cmp(&b)));
    let mut picked: Vec<usize> = vec![0, 1, 2, heads / 8, heads / 4, heads / 2, heads - 1];
    picked.retain(|&rank| rank < heads);
    picked.sort_unstable();
    picked.dedup();
    let series = picked
        .iter()
        .enumerate()
        .map(|(index, &rank)| {
            let head = order[rank];
            let (layer, kv_head) = (head / curves.kv_heads, head % curves.kv_heads);
            let label = format!("layer {layer} head {kv_head}, rank {}", rank + 1);
            let points = (first..bins)
                .map(|bin| {
                    let span = f64::from(curves.grid.block()) * (bin + 1) as f64;
                    let y = mean[head * bins + bin];
                    Point {
                        x: span,
                        y,
                        interval: None,
                        note: format!("{label}: {} at span {span}", number(y)),
                    }
                })
                .collect();
            Series {
                markers: bins <= 40,
                radius: 2.0,
                ..Series::line(&label, index, points)
            }
        })
        .collect();
    let chart = Chart {
        x: Axis::new("span, tokens", Scale::Linear),
        y: Axis::new("predicted cost, nats a token", Scale::Linear),
        series,
    };
    let title = format!(
        "Influence at {} tokens: {}",
        tokens(f64::from(length)),
        estimator.name()
    );
    Some(Figure {
        name: slug(&format!("influence-{name}")),
        caption: format!(
            "What a span would cost a head, from {name}: the three heads that need width most, and some further down the ranks. Mean over samples."
        ),
        svg: chart.render(&title),
        title,
    })
}

/// Tasks against text: every plan that was measured at the density that was wanted, those that no other beats, and the chosen one.
fn front(name: &str, steps: &[Step]) -> Figure {
    let wanted = steps
        .iter()
        .map(|step| step.density)
        .fold(f64::INFINITY, f64::min);
    // Budgets on the way lose less, and nobody may choose them.
    let steps: Vec<&Step> = steps.iter().filter(|step| step.density <= wanted).collect();
    let points: Vec<(f64, f64)> = steps.iter().map(|step| step.measured.point()).collect();
    let best = undominated(&points);
    let point = |at: usize| Point {
        x: points[at].0,
        y: points[at].1,
        interval: None,
        note: format!(
            "{} at density {}: task {}, text {}",
            steps[at].name(),
            number(steps[at].density),
            number(points[at].0),
            number(points[at].1)
        ),
    };
    let mut line: Vec<Point> = best.iter().map(|&at| point(at)).collect();
    line.sort_by(|a, b| a.x.total_cmp(&b.x).then(a.y.total_cmp(&b.y)));
    let chosen = steps.iter().rposition(|step| step.accepted);
    let mut series = vec![
        Series {
            line: false,
            color: "#9aa5b1",
            ..Series::line("measured plans", 0, (0..steps.len()).map(point).collect())
        },
        Series::line("no other is better in both", 0, line),
    ];
    if let Some(at) = chosen {
        series.push(Series {
            line: false,
            radius: 6.0,
            color: color(1),
            ..Series::line("chosen", 1, vec![point(at)])
        });
    }
    let chart = Chart {
        x: Axis::new(
            "tasks: divergence from dense on answers, nats a token",
            Scale::Linear,
        ),
        y: Axis::new("text: divergence from dense, nats a token", Scale::Linear),
        series,
    };
    let title = format!("Retrieval against language modeling: {name}");
    Figure {
        name: slug(&format!("front-{name}")),
        caption: "Plans at the density that was wanted, measured on held-out samples, at profiled lengths and between them. Lower left is better.".into(),
        svg: chart.render(&title),
        title,
    }
}

fn progress(name: &str, steps: &[Step]) -> Figure {
    let point = |at: usize, y: f64| Point {
        x: (at + 1) as f64,
        y,
        interval: None,
        note: format!(
            "{} at density {}: {}{}",
            steps[at].name(),
            number(steps[at].density),
            number(y),
            if steps[at].accepted { ", accepted" } else { "" }
        ),
    };
    let of = |value: &dyn Fn(&Step) -> Option<f64>| -> Vec<Point> {
        (0..steps.len())
            .filter_map(|at| Some(point(at, value(&steps[at])?)))
            .collect()
    };
    let accepted: Vec<Point> = (0..steps.len())
        .filter(|&at| steps[at].accepted)
        .map(|at| point(at, steps[at].measured.loss))
        .collect();
    let series = vec![
        Series::line("loss", 0, of(&|step| Some(step.measured.loss))),
        Series::line("tasks", 1, of(&|step| step.measured.task)),
        Series::line("text", 2, of(&|step| step.measured.text)),
        Series {
            line: false,
            radius: 5.5,
            color: "#111111",
            ..Series::line("best so far", 0, accepted)
        },
    ];
    let chart = Chart {
        x: Axis::new("plan measured", Scale::Linear),
        y: Axis::from_zero("nats a token"),
        series,
    };
    let title = format!("The search: {name}");
    Figure {
        name: slug(&format!("search-{name}")),
        caption: "Plans in the order in which they were measured on held-out samples. Only plans at the wanted density can become the best.".into(),
        svg: chart.render(&title),
        title,
    }
}

/// One chart a suite: scores with intervals, or what a text costs.
fn quality(name: &str, cells: &[Cell]) -> Vec<Figure> {
    let suites: BTreeSet<&str> = cells.iter().map(|cell| cell.suite.as_str()).collect();
    let mut methods: Vec<&str> = Vec::new();
    for cell in cells {
        if !methods.contains(&cell.method.as_str()) {
            methods.push(&cell.method);
        }
    }
    let mut figures = Vec::new();
    for suite in suites {
        let dense = |length: u32| {
            let mut of = cells.iter();
            let found = of.find(|cell| {
                cell.suite == suite && cell.method == "dense" && cell.length == length
            });
            found.and_then(|cell| cell.perplexity)
        };
        let value = |cell: &Cell| match suite {
            "perplexity" => Some(cell.perplexity? / dense(cell.length)?),
            "kl" => cell.kl,
            _ => cell.score,
        };
        let series: Vec<Series> = methods
            .iter()
            .enumerate()
            .map(|(index, method)| {
                let points = cells
                    .iter()
                    .filter(|cell| cell.suite == suite && cell.method == *method)
                    .filter_map(|cell| {
                        let y = value(cell)?;
                        Some(Point {
                            // Methods stand beside each other, not on top of each other.
                            x: f64::from(cell.length)
                                * (0.02 * (index as f64 - methods.len() as f64 / 2.0)).exp2(),
                            y,
                            interval: cell.interval.map(|interval| (interval.low, interval.high)),
                            note: format!(
                                "{method} at {}: {} ({} trials)",
                                tokens(f64::from(cell.length)),
                                number(y),
                                cell.trials
                            ),
                        })
                    })
                    .collect();
                Series::line(method, index, points)
            })
            .filter(|series| !series.points.is_empty())
            .collect();
        if series.is_empty() {
            continue;
        }
        let (label, y) = match suite {
            "perplexity" => (
                "perplexity over dense",
                Axis::new("perplexity over dense", Scale::Linear),
            ),
            "kl" => ("divergence", Axis::from_zero("KL from dense, nats a token")),
            _ => (
                "score",
                Axis {
                    most: Some(1.0),
                    ..Axis::from_zero("score of free generation")
                },
            ),
        };
        let chart = Chart {
            x: Axis::new("prompt length, tokens", Scale::Binary),
            y,
            series,
        };
        let title = format!("{suite}: {label}");
        figures.push(Figure {
            name: slug(&format!("quality-{suite}")),
            caption: format!(
                "From {name}. Bars are 95% intervals; every method had the same prompts."
            ),
            svg: chart.render(&title),
            title,
        });
    }
    figures
}
