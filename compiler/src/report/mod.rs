//! One page that shows a plan: figures and tables from files that other commands wrote.
//!
//! The page is one HTML file. It loads nothing, and its only script turns a figure into a PNG when asked to. Everything
//! that comes from a file is text to it, never markup.

mod figures;
mod inputs;
mod svg;

use std::collections::BTreeSet;
use std::fmt::Write as _;

pub(crate) use figures::{Figure, figures};
pub(crate) use inputs::Inputs;

use svg::{escape, number, tokens};

use crate::evaluate::statistics::Interval;
use crate::evaluate::{POOLED, Summary};

const STYLE: &str = "
:root{--ink:#1f2933;--muted:#5b6875;--line:#d9dee4}
body{font:15px/1.55 system-ui,'Segoe UI',Helvetica,Arial,sans-serif;color:var(--ink);background:#f6f7f9;margin:0}
main{max-width:1240px;margin:0 auto;padding:24px 20px 60px}
h1{font-size:26px;margin:8px 0 2px}h2{font-size:19px;margin:34px 0 8px}
p.lead,figcaption{color:var(--muted);margin:4px 0 10px}
figure{background:#fff;border:1px solid var(--line);border-radius:8px;margin:14px 0;padding:14px 16px}
figure svg{max-width:100%;height:auto;display:block}
figure h3{font-size:15px;margin:0 0 8px}
.save{float:right;font-size:12px}.save button{font:inherit;border:1px solid var(--line);background:#fff;border-radius:5px;padding:2px 9px;margin-left:6px;cursor:pointer}
.scroll{overflow-x:auto;background:#fff;border:1px solid var(--line);border-radius:8px;margin:12px 0}
table{border-collapse:collapse;width:100%;font-size:13px;font-variant-numeric:tabular-nums}
th,td{padding:6px 9px;text-align:right;border-bottom:1px solid #edf0f3;white-space:nowrap}
th{background:#fafbfc;color:var(--muted);font-weight:600;white-space:normal;vertical-align:bottom}td:first-child,th:first-child,td.t,th.t{text-align:left}td.t{white-space:normal;max-width:22em}td:first-child{white-space:nowrap}
summary{cursor:pointer;color:var(--muted);margin:10px 0}td b{font-weight:600}
tr:last-child td{border-bottom:0}code{font-size:12px}
@media print{body{background:#fff}.save{display:none}figure,.scroll{break-inside:avoid}}
";

const SCRIPT: &str = "
document.addEventListener('click',function(event){
var button=event.target.closest('button[data-as]');if(!button)return;
var figure=button.closest('figure'),svg=figure.querySelector('svg');
var text=new XMLSerializer().serializeToString(svg),blob=new Blob([text],{type:'image/svg+xml'}),url=URL.createObjectURL(blob);
function save(href,end){var a=document.createElement('a');a.href=href;a.download=figure.id+end;a.click()}
if(button.dataset.as==='svg'){save(url,'.svg');return}
var image=new Image();image.onload=function(){var canvas=document.createElement('canvas');
canvas.width=svg.width.baseVal.value*2;canvas.height=svg.height.baseVal.value*2;
canvas.getContext('2d').drawImage(image,0,0,canvas.width,canvas.height);save(canvas.toDataURL('image/png'),'.png')};
image.src=url});
";

/// The page.
pub(crate) fn page(inputs: &Inputs, figures: &[Figure], title: &str) -> String {
    let mut html = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><title>{0}</title><style>{STYLE}</style></head><body><main><h1>{0}</h1>",
        escape(title)
    );
    if let Some(model) = &inputs.model {
        let _ = write!(html, "<p class=\"lead\">Model: {}</p>", escape(model));
    }
    plans(&mut html, inputs);
    quality(&mut html, inputs);
    let sections = [
        (
            "Where the cache goes",
            &["spans", "density", "kv-bytes"][..],
        ),
        ("What a window costs", &["influence"]),
        ("How the plan was chosen", &["front", "search"]),
        ("Quality by suite", &["quality"]),
    ];
    for (heading, starts) in sections {
        let of: Vec<&Figure> = figures
            .iter()
            .filter(|figure| starts.iter().any(|start| figure.name.starts_with(start)))
            .collect();
        if !of.is_empty() {
            let _ = write!(html, "<h2>{heading}</h2>");
        }
        for figure in of {
            let _ = write!(
                html,
                "<figure id=\"{}\"><span class=\"save\"><button data-as=\"svg\">SVG</button><button data-as=\"png\">PNG</button></span><h3>{}</h3>{}<figcaption>{}</figcaption></figure>",
                escape(&figure.name),
                escape(&figure.title),
                figure.svg,
                escape(&figure.caption)
            );
        }
    }
    search(&mut html, inputs);
    ranks(&mut html, inputs);
    let _ = writeln!(html, "</main><script>{SCRIPT}</script></body></html>");
    html
}

fn table(html: &mut String, head: &[&str], rows: &[Vec<String>]) {
    let text = |cell: &str| {
        let figure =
            cell.starts_with(|char: char| char.is_ascii_digit() || "-\u{d7}".contains(char));
        !cell.is_empty() && !figure
    };
    // A column is aligned as one.
    let class = |column: usize| {
        let mut cells = rows.iter().filter_map(|row| row.get(column));
        if cells.any(|cell| text(cell)) {
            " class=\"t\""
        } else {
            ""
        }
    };
    html.push_str("<div class=\"scroll\"><table><thead><tr>");
    for (column, cell) in head.iter().enumerate() {
        let _ = write!(html, "<th{}>{}</th>", class(column), escape(cell));
    }
    html.push_str("</tr></thead><tbody>");
    for row in rows {
        html.push_str("<tr>");
        for (column, cell) in row.iter().enumerate() {
            let _ = write!(html, "<td{}>{}</td>", class(column), escape(cell));
        }
        html.push_str("</tr>");
    }
    html.push_str("</tbody></table></div>");
}

/// A number, if there is one.
fn show(value: Option<f64>) -> String {
    value.map(number).unwrap_or_default()
}

/// An interval, if there is one.
fn range(interval: Option<Interval>) -> String {
    interval.map_or_else(String::new, |one| {
        format!("{} \u{2013} {}", number(one.low), number(one.high))
    })
}

fn plans(html: &mut String, inputs: &Inputs) {
    if inputs.plans.is_empty() {
        return;
    }
    html.push_str("<h2>Plans</h2>");
    let rows: Vec<Vec<String>> = inputs
        .plans
        .iter()
        .map(|plan| {
            let origin = &plan.provenance;
            let (densities, contexts): (Vec<String>, Vec<String>) = origin
                .budgets
                .keys()
                .filter_map(|&context| {
                    let masks = plan.masks(context).ok()?;
                    let density = moa_mask::density::kv_density(masks.iter(), context);
                    Some((number(density), tokens(f64::from(context))))
                })
                .unzip();
            let budgets = if contexts.is_empty() {
                String::new()
            } else {
                format!("{} at {}", densities.join(", "), contexts.join(", "))
            };
            let note = |key: &str| origin.notes.get(key).cloned().unwrap_or_default();
            vec![
                plan.name.clone(),
                format!(
                    "{} \u{d7} {}",
                    plan.rules.len(),
                    plan.rules.first().map_or(0, Vec::len)
                ),
                budgets,
                origin.estimator.clone().unwrap_or_default(),
                note("search"),
                note("measured_task"),
                note("measured_text"),
                plan.hash().chars().take(12).collect(),
            ]
        })
        .collect();
    table(
        html,
        &[
            "plan",
            "layers \u{d7} KV heads",
            "kv_density",
            "estimator",
            "search",
            "held-out task",
            "held-out text",
            "hash",
        ],
        &rows,
    );
}

fn quality(html: &mut String, inputs: &Inputs) {
    for (name, summary) in &inputs.summaries {
        let _ = write!(
            html,
            "<h2>Quality</h2><p class=\"lead\">{}: free generation without an answer prefix, 95% intervals; nll is teacher-forced, nats a token.</p>",
            escape(name)
        );
        board(html, summary);
        html.push_str("<details><summary>Every suite at every length</summary>");
        let rows: Vec<Vec<String>> = summary
            .cells
            .iter()
            .map(|cell| {
                vec![
                    cell.suite.clone(),
                    tokens(f64::from(cell.length)),
                    cell.method.clone(),
                    number(cell.kv_density),
                    cell.trials.to_string(),
                    show(cell.score),
                    range(cell.interval),
                    show(cell.nll),
                    show(cell.perplexity),
                    show(cell.kl),
                    show(cell.agreement),
                ]
            })
            .collect();
        table(
            html,
            &[
                "suite",
                "length",
                "method",
                "kv_density",
                "trials",
                "score",
                "95%",
                "nll",
                "perplexity",
                "KL",
                "as dense",
            ],
            &rows,
        );
        html.push_str("</details>");
        let rows: Vec<Vec<String>> = summary
            .contrasts
            .iter()
            .filter(|contrast| contrast.length.is_none())
            .map(|contrast| {
                vec![
                    contrast.suite.clone(),
                    contrast.method.clone(),
                    contrast.against.clone(),
                    contrast.trials.to_string(),
                    number(contrast.difference),
                    range(contrast.interval),
                    show(contrast.ratio),
                    range(contrast.ratio_interval),
                    show(contrast.p),
                ]
            })
            .collect();
        if !rows.is_empty() {
            html.push_str("<details><summary>Contrasts between methods</summary>");
            html.push_str("<p class=\"lead\">Contrasts on the same prompts, all lengths together: paired bootstrap, McNemar's exact test.</p>");
            table(
                html,
                &[
                    "suite",
                    "method",
                    "against",
                    "trials",
                    "difference",
                    "95%",
                    "ratio",
                    "95%",
                    "p",
                ],
                &rows,
            );
            html.push_str("</details>");
        }
        let pooled = summary.effective.iter().any(|one| one.suite == POOLED);
        let rows: Vec<Vec<String>> = summary
            .effective
            .iter()
            .filter(|one| !pooled || one.suite == POOLED)
            .map(|one| {
                vec![
                    one.suite.clone(),
                    one.method.clone(),
                    tokens(f64::from(one.tokens)),
                    number(one.best),
                ]
            })
            .collect();
        if !rows.is_empty() {
            html.push_str("<p class=\"lead\">Effective context: the longest length that keeps nine tenths of the method's best score.</p>");
            table(
                html,
                &["suite", "method", "effective context", "best score"],
                &rows,
            );
        }
    }
}

/// One line for a method: what it retrieves, all suites together, and what it does to perplexity, at every length.
fn board(html: &mut String, summary: &Summary) {
    let cells = &summary.cells;
    let suite = if cells.iter().any(|cell| cell.suite == POOLED) {
        POOLED
    } else {
        match cells.iter().find(|cell| cell.score.is_some()) {
            Some(cell) => cell.suite.as_str(),
            None => return,
        }
    };
    let find = |suite: &str, method: &str, length: u32| {
        let mut of = cells.iter();
        of.find(|cell| cell.suite == suite && cell.method == method && cell.length == length)
    };
    let scored = cells.iter().filter(|cell| cell.suite == suite);
    let lengths: BTreeSet<u32> = scored.clone().map(|cell| cell.length).collect();
    let mut methods: Vec<&str> = Vec::new();
    for cell in scored {
        if !methods.contains(&cell.method.as_str()) {
            methods.push(&cell.method);
        }
    }
    let read = cells.iter().any(|cell| cell.perplexity.is_some());
    let mut head = vec!["method".to_owned(), "kv_density".to_owned()];
    for &length in &lengths {
        let length = tokens(f64::from(length));
        head.push(format!("{suite}, {length}"));
        if read {
            head.push(format!("perplexity, {length}"));
        }
    }
    let first = methods.first().copied().unwrap_or_default();
    let rows: Vec<Vec<String>> = methods
        .iter()
        .map(|&method| {
            let densities = lengths.iter().filter_map(|&at| find(suite, method, at));
            let densities: Vec<f64> = densities.map(|cell| cell.kv_density).collect();
            let mean = densities.iter().sum::<f64>() / densities.len().max(1) as f64;
            let mut row = vec![method.to_owned(), format!("{mean:.3}")];
            for &length in &lengths {
                let own = find(suite, method, length);
                row.push(
                    own.and_then(|cell| cell.score)
                        .map_or_else(String::new, |score| {
                            let half = own.and_then(|cell| cell.interval);
                            half.map_or_else(
                                || format!("{score:.3}"),
                                |one| format!("{score:.3} [{:.2}, {:.2}]", one.low, one.high),
                            )
                        }),
                );
                if read {
                    let of = |method| find("perplexity", method, length)?.perplexity;
                    row.push(match (of(method), of(first)) {
                        (Some(own), Some(dense)) => format!("\u{d7} {:.4}", own / dense),
                        _ => String::new(),
                    });
                }
            }
            row
        })
        .collect();
    let head: Vec<&str> = head.iter().map(String::as_str).collect();
    if read {
        let _ = write!(
            html,
            "<p class=\"lead\">Perplexity is relative to that of {}.</p>",
            escape(first)
        );
    }
    table(html, &head, &rows);
}

fn search(html: &mut String, inputs: &Inputs) {
    for (name, steps) in &inputs.steps {
        let _ = write!(html, "<h2>Measured plans: {}</h2>", escape(name));
        let rows: Vec<Vec<String>> = steps
            .iter()
            .map(|step| {
                vec![
                    step.name(),
                    number(step.density),
                    show(step.curvature),
                    number(step.moved),
                    show(step.predicted),
                    show(step.measured.task),
                    show(step.measured.text),
                    number(step.measured.loss),
                    if step.accepted {
                        "best so far".into()
                    } else {
                        String::new()
                    },
                ]
            })
            .collect();
        table(
            html,
            &[
                "plan",
                "budget",
                "curvature",
                "moved",
                "predicted change",
                "task",
                "text",
                "loss",
                "",
            ],
            &rows,
        );
    }
}

fn ranks(html: &mut String, inputs: &Inputs) {
    for (name, ranked) in &inputs.ranked {
        let _ = write!(
            html,
            "<h2>Estimators</h2><p class=\"lead\">{}: rank correlation of predicted and measured loss over random plans of one density.</p>",
            escape(name)
        );
        let rows: Vec<Vec<String>> = ranked
            .iter()
            .map(|one| {
                vec![
                    one.of.clone(),
                    one.estimator.clone(),
                    if one.monotone {
                        "monotone".into()
                    } else {
                        String::new()
                    },
                    number(one.spearman),
                    range(one.interval),
                    number(one.kendall),
                ]
            })
            .collect();
        table(
            html,
            &["of", "estimator", "curves", "Spearman", "95%", "Kendall"],
            &rows,
        );
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use moa_format::{Plan, Provenance};
    use moa_mask::HeadRule;

    use super::*;
    use crate::search::{Measured, Step, StepKind};

    #[test]
    fn a_page_holds_every_figure_and_nothing_from_outside() {
        let step = |number: usize, task: f64, text: f64, accepted: bool| Step {
            kind: StepKind::Front,
            number,
            density: 0.5,
            curvature: None,
            moved: 0.5,
            predicted: None,
            measured: Measured {
                task: Some(task),
                text: Some(text),
                loss: task + text,
                parts: BTreeMap::new(),
            },
            accepted,
            label: Some("<b>text 2</b>".into()),
            choice: vec![],
        };
        let on_the_way = Step {
            kind: StepKind::Tighten,
            density: 0.75,
            label: Some("a wider budget".into()),
            ..step(2, 0.01, 0.01, false)
        };
        let plan = Plan {
            name: "moa-50".into(),
            sink: 64,
            block: 64,
            rules: vec![
                vec![
                    HeadRule::DENSE,
                    HeadRule::Elastic {
                        alpha: 0.0,
                        beta: 0.25
                    }
                ];
                3
            ],
            provenance: Provenance {
                budgets: BTreeMap::from([(4096, 0.7)]),
                ..Provenance::default()
            },
        };
        let inputs = Inputs {
            plans: vec![plan],
            steps: vec![(
                "moa-50".into(),
                vec![step(0, 1.0, 0.1, true), step(1, 0.5, 0.2, true), on_the_way],
            )],
            model: Some("<script>alert(1)</script>".into()),
            ..Inputs::default()
        };
        let figures = figures(&inputs);
        let names: Vec<&str> = figures.iter().map(|figure| figure.name.as_str()).collect();
        assert_eq!(
            names,
            ["spans-moa-50", "density", "front-moa-50", "search-moa-50"]
        );
        let front = figures.iter().find(|figure| figure.name == "front-moa-50");
        assert!(!front.unwrap().svg.contains("a wider budget"));
        let html = page(&inputs, &figures, "A plan");
        for name in names {
            assert!(html.contains(&format!("<figure id=\"{name}\">")), "{name}");
        }
        assert_eq!(html.matches("<script>").count(), 1, "only our own");
        assert!(!html.contains("<b>text"));
        let without_namespace = html.replace("http://www.w3.org/2000/svg", "");
        assert!(!without_namespace.contains("http"), "nothing is loaded");
        assert!(html.contains("layer 2, KV head 1: 1024 of 4096 tokens"));
    }
}
