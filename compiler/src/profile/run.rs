//! Runs the profile sample by sample and remembers each, so that an interrupted run goes on where it stopped.
//!
//! A finished sample is a small profile of its own in the work folder, named by the hash of everything that
//! its numbers depend on; a run that finds it there does not compute it again. The folder goes when the command
//! that owns it is done.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use moa_format::{ModelConfig, Plan, sha256_hex};
use moa_lm::{Estimator, Influence, LmError, LossKind, Observer, ProfileOptions};
use moa_mask::{MaskGrid, ModelMasks};

use super::costs::is_text;
use super::curves::{BlockMaps, Curves, KindCurves, LengthCurves};
use crate::calibrate::Sample;
use crate::device::{Model, on};
use crate::files::{FileError, read_bounded, write_atomic};
use crate::hint::Told;
use crate::printer::Printer;

/// Changes whenever a sample's numbers would.
const CACHE_VERSION: u32 = 2;
const SAMPLE_LIMIT: u64 = 2 << 30;

/// What every sample is measured with.
#[derive(Debug, Clone)]
pub(crate) struct ProfileSpec {
    pub(crate) grid: MaskGrid,
    pub(crate) loss: LossKind,
    /// Profile the model as masked by this plan.
    pub(crate) at: Option<Plan>,
    /// Whether [`Estimator::PerEntry`] is wanted beside the joint estimators: on a GPU it takes more than they do.
    pub(crate) per_entry: bool,
    /// Side of the blocks of per-entry maps, in tokens.
    pub(crate) blocks: Option<u32>,
    /// What logits are divided by where an answer carries the loss; texts stay as they are.
    pub(crate) temperature: f64,
    /// SHA-256 of the checkpoint.
    pub(crate) source_sha256: String,
}

impl ProfileSpec {
    fn temperature_of(&self, sample: &Sample) -> Option<f64> {
        (self.temperature != 1.0 && !is_text(&sample.kind)).then_some(self.temperature)
    }
}

/// What a profile asks of a model, wherever it lies.
pub(crate) trait Profiled {
    fn config(&self) -> &ModelConfig;

    fn influence(
        &self,
        sample: &moa_lm::Sample,
        options: &ProfileOptions<'_>,
        observer: &dyn Observer,
    ) -> moa_lm::Result<Influence>;
}

impl Profiled for Model {
    fn config(&self) -> &ModelConfig {
        on!(self, lm => lm.config())
    }

    fn influence(
        &self,
        sample: &moa_lm::Sample,
        options: &ProfileOptions<'_>,
        observer: &dyn Observer,
    ) -> moa_lm::Result<Influence> {
        on!(self, lm => lm.influence(sample, options, observer))
    }
}

/// A model with a place to remember samples.
pub(crate) struct Profiler<'a> {
    pub(crate) lm: &'a dyn Profiled,
    pub(crate) work: &'a Path,
    pub(crate) printer: &'a Printer,
    pub(crate) cancel: &'a AtomicBool,
}

impl Profiler<'_> {
    /// Curves of all `samples`, by declared length.
    pub(crate) fn run(
        &self,
        samples: &BTreeMap<u32, Vec<Sample>>,
        spec: &ProfileSpec,
    ) -> anyhow::Result<Curves> {
        std::fs::create_dir_all(self.work)
            .map_err(|source| FileError::new("create", self.work, source))?;
        let total: usize = samples.values().map(Vec::len).sum();
        let jobs: Vec<(u32, &Sample, PathBuf)> = samples
            .iter()
            .flat_map(|(&context, list)| list.iter().map(move |sample| (context, sample)))
            .map(|(context, sample)| {
                (
                    context,
                    sample,
                    self.work
                        .join(format!("{}.safetensors", key(context, sample, spec))),
                )
            })
            .collect();
        let finished = jobs.iter().filter(|(_, _, path)| path.exists()).count();
        if finished > 0 {
            self.printer.say(format!(
                "{finished} of {total} samples were profiled before"
            ));
        }
        let bar = self.printer.bar("profiling", total as u64);
        let config = self.lm.config();
        let mut curves = Curves {
            layers: config.layers as usize,
            kv_heads: config.kv_heads as usize,
            grid: spec.grid,
            lengths: BTreeMap::new(),
            metadata: BTreeMap::new(),
        };
        for (context, sample, path) in jobs {
            let cached = read_bounded(&path, SAMPLE_LIMIT)
                .ok()
                .and_then(|bytes| Curves::from_bytes(&bytes).ok());
            let one = match cached {
                Some(one) => one,
                None => {
                    let one = self.sample(context, sample, spec)?;
                    write_atomic(&path, &one.to_bytes()?)?;
                    one
                }
            };
            curves.merge(one);
            bar.inc(1);
        }
        bar.finish_and_clear();
        Ok(curves)
    }

    fn sample(&self, context: u32, sample: &Sample, spec: &ProfileSpec) -> anyhow::Result<Curves> {
        let config = self.lm.config();
        let masks: Option<ModelMasks> = spec
            .at
            .as_ref()
            .map(|plan| plan.masks(context))
            .transpose()?;
        let options = ProfileOptions {
            grid: spec.grid,
            at: masks.as_ref(),
            loss: spec.loss,
            per_entry: spec.per_entry,
            blocks: spec.blocks,
            temperature: spec.temperature_of(sample),
        };
        let start = u32::try_from(sample.response_start)?;
        let input = moa_lm::Sample::new(sample.ids.clone(), start);
        let influence = match self.lm.influence(&input, &options, self.cancel) {
            Ok(influence) => influence,
            Err(LmError::Cancelled) => {
                return Err(Told::new(
                    "interrupted",
                    format!(
                        "finished samples are kept in {}; run the same command again to go on",
                        self.work.display()
                    ),
                )
                .into());
            }
            // The device may be too small or gone: what is finished serves the next run, there or elsewhere.
            Err(error @ (LmError::Device { .. } | LmError::NotFinite { .. })) => {
                return Err(anyhow::Error::new(error).context(Told::new(
                    format!("a sample of {} tokens could not be profiled", input.ids.len()),
                    format!(
                        "finished samples are kept in {}; run the same command again with --device cpu, or on a GPU with more free memory, to go on",
                        self.work.display()
                    ),
                )));
            }
            Err(error) => return Err(error.into()),
        };
        let mut curves = Curves {
            layers: config.layers as usize,
            kv_heads: config.kv_heads as usize,
            grid: spec.grid,
            lengths: BTreeMap::new(),
            metadata: BTreeMap::new(),
        };
        let (heads, bins) = (curves.layers * curves.kv_heads, curves.bins(context));
        let mean = Estimator::ALL
            .into_iter()
            .map(|estimator| widen(influence.curve(estimator), heads, bins))
            .collect();
        let blocks = influence.maps.map(|maps| BlockMaps {
            heads: maps.heads,
            side: maps.side,
            abs: maps.abs,
            signed: maps.signed,
        });
        let kinds = BTreeMap::from([(sample.kind.clone(), KindCurves { samples: 1, mean })]);
        curves
            .lengths
            .insert(context, LengthCurves { kinds, blocks });
        Ok(curves)
    }
}

/// Curves of a text a little shorter than its declared length, brought to that length's bins: a span beyond
/// the text costs what seeing all of it costs.
fn widen(curves: &[f64], heads: usize, bins: usize) -> Vec<f64> {
    let own = curves.len() / heads.max(1);
    curves
        .chunks(own.max(1))
        .flat_map(|curve| (0..bins).map(move |bin| curve[bin.min(own - 1)]))
        .collect()
}

/// What a sample's numbers depend on, hashed.
fn key(context: u32, sample: &Sample, spec: &ProfileSpec) -> String {
    let at = spec.at.as_ref().map(Plan::hash).unwrap_or_default();
    let mut text = format!(
        "{CACHE_VERSION} {} {context} {} {} {:?} {at} {} {:?} {} {}",
        spec.source_sha256,
        spec.grid.sink(),
        spec.grid.block(),
        spec.loss,
        spec.per_entry,
        spec.blocks,
        sample.kind,
        sample.response_start,
    );
    if let Some(temperature) = spec.temperature_of(sample) {
        text += &format!(" T{temperature}");
    }
    for id in &sample.ids {
        text += &format!(" {id}");
    }
    sha256_hex(text.as_bytes())
}

#[cfg(test)]
mod resume_tests;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_texts_are_widened_by_their_last_bin() {
        assert_eq!(
            widen(&[3.0, 1.0, 6.0, 2.0], 2, 3),
            [3.0, 1.0, 1.0, 6.0, 2.0, 2.0]
        );
        assert_eq!(widen(&[3.0, 1.0, 6.0, 2.0], 2, 1), [3.0, 6.0]);
    }

    #[test]
    fn keys_change_with_everything_that_matters() {
        let sample = Sample {
            ids: vec![1, 2, 3],
            response_start: 2,
            kind: "a".into(),
        };
        let spec = ProfileSpec {
            grid: MaskGrid::default(),
            loss: LossKind::CrossEntropy,
            at: None,
            per_entry: false,
            blocks: None,
            temperature: 1.0,
            source_sha256: "00".into(),
        };
        let base = key(64, &sample, &spec);
        assert_eq!(base, key(64, &sample.clone(), &spec.clone()));
        assert_ne!(base, key(128, &sample, &spec));
        assert_ne!(
            base,
            key(
                64,
                &Sample {
                    response_start: 1,
                    ..sample.clone()
                },
                &spec
            )
        );
        assert_ne!(
            base,
            key(
                64,
                &Sample {
                    ids: vec![1, 2, 4],
                    ..sample.clone()
                },
                &spec
            )
        );
        assert_ne!(
            base,
            key(
                64,
                &sample,
                &ProfileSpec {
                    blocks: Some(16),
                    ..spec.clone()
                }
            )
        );
        assert_ne!(
            base,
            key(
                64,
                &sample,
                &ProfileSpec {
                    temperature: 2.0,
                    ..spec.clone()
                }
            )
        );
        assert_ne!(
            base,
            key(
                64,
                &sample,
                &ProfileSpec {
                    per_entry: true,
                    ..spec.clone()
                }
            )
        );
        assert_ne!(
            base,
            key(
                64,
                &sample,
                &ProfileSpec {
                    source_sha256: "01".into(),
                    ..spec
                }
            )
        );
    }
}
