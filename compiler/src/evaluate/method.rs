//! What is compared: masks at a context length, all of them at the same budget where they have none of their own.
//!
//! | spelling | what it is |
//! |---|---|
//! | `dense` | every head sees everything |
//! | `dense-kv8` | dense, keys and values rounded to 8 bits with one scale for every token and head |
//! | `NAME`, `FILE`, `moa:NAME`, `moa:FILE` | a plan |
//! | `uniform[:BUDGET]` | one window for all heads |
//! | `binary:BUDGET:PROFILE` | all or nothing: the heads that need it most see everything, by our own influence |
//! | `duo:DIR[:SPARSITY]` | a `DuoAttention` pattern |
//! | `METHOD+kv8` | any of them with keys and values rounded to 8 bits, as in `dense-kv8` |
//!
//! A budget is a kv_density or a plan, whose kv_density at the same context it then is; without one it is that of the
//! first plan in the list. What a budget leaves over goes to the baseline: a uniform window is rounded up to a block,
//! and the narrow heads of `binary` share the rest.

use std::path::Path;

use moa_format::{ModelConfig, Plan};
use moa_lm::{Estimator, KvPrecision};
use moa_mask::density::kv_density;
use moa_mask::{HeadMask, HeadRule, MaskGrid, ModelMasks};

use super::duo::DuoPattern;
use super::scorer::Under;
use crate::hint::Told;
use crate::plans;
use crate::profile::{CostSpec, Curves, costs};
use crate::source::Source;

/// A method under the name that the user gave it.
#[derive(Debug)]
pub(crate) struct Method {
    pub(crate) name: String,
    kind: Kind,
    kv: KvPrecision,
}

/// Behind a method whose caches are bytes.
const BYTES: &str = "+kv8";

#[derive(Debug)]
enum Kind {
    Dense,
    Plan(Box<Plan>),
    Uniform(Budget),
    Binary(Budget, Box<Curves>, Estimator),
    Duo(DuoPattern, Sparsity),
}

#[derive(Debug)]
enum Budget {
    Density(f64),
    Plan(Box<Plan>),
}

#[derive(Debug)]
enum Sparsity {
    Share(f64),
    Within(Budget),
}

impl Budget {
    /// Tokens that a head keeps on average.
    fn kept(&self, context: u32) -> anyhow::Result<f64> {
        let density = match self {
            Self::Density(density) => *density,
            Self::Plan(plan) => kv_density(plan.masks(context)?.iter(), context),
        };
        Ok(density * f64::from(context))
    }

    fn grid(&self) -> anyhow::Result<MaskGrid> {
        match self {
            Self::Density(_) => Ok(MaskGrid::default()),
            Self::Plan(plan) => Ok(plan.grid()?),
        }
    }
}

impl Method {
    /// Reads a list of methods.
    pub(crate) fn parse_all(texts: &[String], source: &Source) -> anyhow::Result<Vec<Self>> {
        let mut reference: Option<Plan> = None;
        for text in texts {
            if let Some(plan) = plan_of(without_precision(text).0, source)? {
                reference = Some(plan);
                break;
            }
        }
        texts
            .iter()
            .map(|text| {
                let (method, kv) = without_precision(text);
                let kind = Kind::parse(method, source, reference.as_ref())?;
                Ok(Self {
                    name: text.clone(),
                    kind,
                    kv,
                })
            })
            .collect()
    }

    pub(crate) fn is_dense(&self) -> bool {
        matches!(self.kind, Kind::Dense) && self.kv == KvPrecision::Full
    }

    /// The dense model.
    pub(crate) fn dense() -> Self {
        Self {
            name: plans::DENSE.into(),
            kind: Kind::Dense,
            kv: KvPrecision::Full,
        }
    }

    /// How the model runs under this method at a declared context length.
    pub(crate) fn under(&self, config: &ModelConfig, context: u32) -> anyhow::Result<Under> {
        Ok(Under {
            masks: self.masks(config, context)?,
            context,
            kv: self.kv,
        })
    }

    fn masks(&self, config: &ModelConfig, context: u32) -> anyhow::Result<ModelMasks> {
        let (layers, kv_heads) = (config.layers as usize, config.kv_heads as usize);
        match &self.kind {
            Kind::Dense => Ok(ModelMasks::dense(layers, kv_heads)),
            Kind::Plan(plan) => Ok(plan.masks(context)?),
            Kind::Uniform(budget) => {
                let grid = budget.grid()?;
                let span = grid
                    .ceil_to_block(budget.kept(context)? - 1e-6)
                    .max(grid.min_span());
                let mask = HeadMask::from_span(span, grid.sink());
                Ok(ModelMasks::uniform(layers, kv_heads, mask))
            }
            Kind::Binary(budget, curves, estimator) => {
                binary(budget.kept(context)?, curves, *estimator, context)
            }
            Kind::Duo(pattern, sparsity) => {
                let full = match sparsity {
                    Sparsity::Share(share) => pattern.full_at(*share),
                    Sparsity::Within(budget) => {
                        let heads = (layers * kv_heads) as f64;
                        pattern.full_within(budget.kept(context)? * heads, context)
                    }
                };
                pattern.masks(full, context)
            }
        }
    }
}

/// A method as it is spelled without its precision, and that precision.
fn without_precision(text: &str) -> (&str, KvPrecision) {
    match text.strip_suffix(BYTES) {
        Some(method) => (method, KvPrecision::Int8),
        None if text == "dense-kv8" => ("dense", KvPrecision::Int8),
        None => (text, KvPrecision::Full),
    }
}

/// The plan that a method is, if it is one.
fn plan_of(text: &str, source: &Source) -> anyhow::Result<Option<Plan>> {
    let baseline = ["uniform", "binary", "duo", "dense"];
    let word = text.split(':').next().unwrap_or(text);
    if baseline.contains(&word) {
        return Ok(None);
    }
    let wanted = text.strip_prefix("moa:").unwrap_or(text);
    plans::resolve(source, Some(wanted))
}

impl Kind {
    fn parse(text: &str, source: &Source, reference: Option<&Plan>) -> anyhow::Result<Self> {
        if let Some(plan) = plan_of(text, source)? {
            return Ok(Self::Plan(Box::new(plan)));
        }
        let (word, rest) = text.split_once(':').unwrap_or((text, ""));
        let budget = |wanted: &str| -> anyhow::Result<Budget> {
            if wanted.is_empty() {
                let plan = reference.ok_or_else(|| {
                    Told::new(
                        format!("{text} has no budget, and no plan is compared"),
                        format!("write for example {word}:0.5, or compare a plan as well"),
                    )
                })?;
                return Ok(Budget::Plan(Box::new(plan.clone())));
            }
            if let Ok(density) = wanted.parse::<f64>() {
                if !(density > 0.0 && density <= 1.0) {
                    return Err(Told::new(
                        format!("{text}: kv_density {density}, expected more than 0, at most 1"),
                        format!("write for example {word}:0.5"),
                    )
                    .into());
                }
                return Ok(Budget::Density(density));
            }
            match plans::resolve(source, Some(wanted))? {
                Some(plan) => Ok(Budget::Plan(Box::new(plan))),
                None => Ok(Budget::Density(1.0)),
            }
        };
        match word {
            "uniform" => Ok(Self::Uniform(budget(rest)?)),
            "binary" => {
                let (wanted, profile) = rest.rsplit_once(':').unwrap_or(("", rest));
                let curves = Curves::from_file(Path::new(profile), || {
                    Told::new(
                        format!("{text}: cannot read the profile"),
                        "write binary:BUDGET:PROFILE with a file that `moa-compile profile` wrote",
                    )
                })?;
                if !curves.fits(source.config()) {
                    return Err(Told::new(
                        format!("{text}: the profile is another model's"),
                        "profile this model",
                    )
                    .into());
                }
                let estimator = curves.estimator().unwrap_or(Estimator::JointSquare);
                Ok(Self::Binary(budget(wanted)?, Box::new(curves), estimator))
            }
            "duo" => {
                let (folder, last) = match rest.rsplit_once(':') {
                    Some((folder, last)) if last.parse::<f64>().is_ok() => (folder, last),
                    _ => (rest, ""),
                };
                let pattern = DuoPattern::open(Path::new(folder), source.config())?;
                let sparsity = match last.parse() {
                    Ok(share) => Sparsity::Share(share),
                    Err(_) => Sparsity::Within(budget("")?),
                };
                Ok(Self::Duo(pattern, sparsity))
            }
            _ => Ok(Self::Dense),
        }
    }
}

/// As many heads as the budget allows see everything, those whose narrowing costs most; the others share the rest.
fn binary(
    kept: f64,
    curves: &Curves,
    estimator: Estimator,
    context: u32,
) -> anyhow::Result<ModelMasks> {
    let grid = curves.grid;
    let narrow = HeadRule::Elastic {
        alpha: 0.0,
        beta: 0.0,
    };
    let spec = CostSpec::usual(estimator, None);
    let table = costs(curves, &spec, &[narrow, HeadRule::DENSE], &[context]);
    let heads = table.len() / 2;
    let mut order: Vec<usize> = (0..heads).collect();
    let gain = |head: usize| table[2 * head] - table[2 * head + 1];
    order.sort_by(|&a, &b| gain(b).total_cmp(&gain(a)).then(a.cmp(&b)));
    let least = f64::from(narrow.span(context, grid));
    let room = (kept - least) * heads as f64;
    let each = (f64::from(context) - least).max(1.0);
    #[expect(clippy::cast_possible_truncation, reason = "a count of heads, clamped")]
    let full = ((room / each + 1e-9).floor().max(0.0) as usize).min(heads);
    let left = (room - each * full as f64).max(0.0) / (heads - full).max(1) as f64;
    #[expect(clippy::cast_possible_truncation, reason = "less than the context")]
    let span = (least + left).floor() as u32;
    let mut rules = vec![HeadRule::Exact { span }; heads];
    for &head in &order[..full] {
        rules[head] = HeadRule::DENSE;
    }
    plans::masks_of(&rules, curves.kv_heads, context, grid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_method_may_have_caches_of_bytes() {
        let (full, bytes) = (KvPrecision::Full, KvPrecision::Int8);
        assert_eq!(without_precision("uniform:0.5"), ("uniform:0.5", full));
        assert_eq!(without_precision("moa:a.json+kv8"), ("moa:a.json", bytes));
        assert_eq!(without_precision("dense-kv8"), ("dense", bytes));
        assert_eq!(without_precision("dense+kv8"), ("dense", bytes));
    }

    #[test]
    fn all_or_nothing_spends_the_whole_budget_on_the_neediest_heads() {
        let grid = MaskGrid::new(16, 16).unwrap();
        // Four heads, 64 bins; head 2 needs everything, then head 0.
        let curve: Vec<f64> = [2.0, 1.0, 9.0, 0.5]
            .iter()
            .flat_map(|need| (0..64).map(move |bin| need * f64::from(63 - bin)))
            .collect();
        let curves = Curves::of_kinds((2, 2), grid, 1024, [("a", curve)]);
        for (density, full) in [
            (0.25, vec![]),
            (0.3, vec![2]),
            (0.6, vec![0, 2]),
            (1.0, vec![0, 1, 2, 3]),
        ] {
            let masks = binary(density * 1024.0, &curves, Estimator::JointAbs, 1024).unwrap();
            let open: Vec<usize> = masks
                .iter()
                .enumerate()
                .filter(|(_, mask)| mask.span() >= 1024)
                .map(|(head, _)| head)
                .collect();
            assert_eq!(open, full, "{density}");
            let kept = kv_density(masks.iter(), 1024);
            assert!(
                kept <= density + 1e-9 && kept > density - 0.002,
                "{kept} of {density}"
            );
        }
    }
}
