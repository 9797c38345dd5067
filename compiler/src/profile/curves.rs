//! Influence curves on disk: what `profile` writes and `solve` reads.
//!
//! A safetensors file with, for every profiled length N,
//!
//! - `curve.<N>` [layer, kv_head, ceil(N/block)] f64: entry s is the cost of span `block*(s+1)` at length N, query
//!   heads summed, samples averaged, for the chosen estimator;
//! - `curve.<estimator>.<N>`: the same for each estimator;
//! - `kind.<kind>.<estimator>.<N>`: the same over the samples of one kind only, so that kinds can be weighed;
//! - with `--blocks B`: `influence_abs.<N>`, `influence_signed.<N>` [layer, head, ceil(N/B), ceil(N/B)].
//!
//! and metadata with lengths, sink, block, estimator, seed. It holds no plan: rules are `solve`'s business.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use anyhow::Context as _;
use moa_format::ModelConfig;
use moa_lm::Estimator;
use moa_mask::MaskGrid;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView, serialize};

use crate::files::read_bounded;
use crate::hint::Told;

/// What is wrong with a profile.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CurveError {
    #[error("not a profile: {0}")]
    Format(String),
    #[error("profile lacks {what}")]
    Missing { what: String },
    #[error("tensor {name} is {found}, expected {expected}")]
    Shape {
        name: String,
        found: String,
        expected: String,
    },
    #[error("tensor {name} holds {value} at {index}, expected finite costs")]
    NotFinite {
        name: String,
        value: f64,
        index: usize,
    },
}

/// Sums over samples of one kind at one length.
#[derive(Debug, Clone, Default)]
pub(crate) struct KindCurves {
    /// Samples summed.
    pub(crate) samples: u32,
    /// Mean cost over samples, `[estimator][layer * kv_head * bin]`, in the order of [`Estimator::ALL`]; empty for one that was not profiled.
    pub(crate) mean: Vec<Vec<f64>>,
}

/// Per-entry influence by blocks, mean over samples: `[layer, head, n, n]`.
#[derive(Debug, Clone)]
pub(crate) struct BlockMaps {
    pub(crate) heads: usize,
    pub(crate) side: usize,
    pub(crate) abs: Vec<f64>,
    pub(crate) signed: Vec<f64>,
}

/// All that was measured at one length.
#[derive(Debug, Clone, Default)]
pub(crate) struct LengthCurves {
    /// By kind of sample.
    pub(crate) kinds: BTreeMap<String, KindCurves>,
    /// Maps for pictures, if asked for.
    pub(crate) blocks: Option<BlockMaps>,
}

/// A profile: the costs of all spans of all KV heads at the profiled lengths.
#[derive(Debug, Clone)]
pub(crate) struct Curves {
    pub(crate) layers: usize,
    pub(crate) kv_heads: usize,
    pub(crate) grid: MaskGrid,
    pub(crate) lengths: BTreeMap<u32, LengthCurves>,
    /// Free text that goes into a plan's provenance: seed, source and calibration hashes, estimator.
    pub(crate) metadata: BTreeMap<String, String>,
}

/// No profile of a real model comes near this.
const FILE_LIMIT: u64 = 4 << 30;

impl Curves {
    /// Reads a file; `refusal` is what is said where it is no profile.
    pub(crate) fn from_file(path: &Path, refusal: impl FnOnce() -> Told) -> anyhow::Result<Self> {
        let curves = Self::from_bytes(&read_bounded(path, FILE_LIMIT)?);
        curves.and_then(Self::whole).with_context(refusal)
    }

    /// Refuses what is only a sample, without the curves of some estimator.
    fn whole(self) -> Result<Self, CurveError> {
        let missing = Estimator::ALL
            .into_iter()
            .find(|&estimator| !self.has(estimator));
        match missing {
            None => Ok(self),
            Some(estimator) => Err(CurveError::Missing {
                what: format!("curves of {estimator}"),
            }),
        }
    }

    /// Whether an estimator was profiled.
    pub(crate) fn has(&self, estimator: Estimator) -> bool {
        let mut kinds = self
            .lengths
            .values()
            .flat_map(|length| length.kinds.values());
        kinds.all(|kind| !kind.mean[estimator.index()].is_empty())
    }

    /// A profile at one length: kinds by their curves, the same for every estimator.
    #[cfg(test)]
    pub(crate) fn of_kinds(
        (layers, kv_heads): (usize, usize),
        grid: MaskGrid,
        length: u32,
        kinds: impl IntoIterator<Item = (&'static str, Vec<f64>)>,
    ) -> Self {
        let kinds = kinds.into_iter().map(|(name, curve)| {
            let curves = KindCurves {
                samples: 1,
                mean: vec![curve; Estimator::ALL.len()],
            };
            (name.to_owned(), curves)
        });
        let of_length = LengthCurves {
            kinds: kinds.collect(),
            blocks: None,
        };
        Self {
            layers,
            kv_heads,
            grid,
            lengths: BTreeMap::from([(length, of_length)]),
            metadata: BTreeMap::new(),
        }
    }

    /// Whether the profile is of a model of this shape.
    pub(crate) fn fits(&self, config: &ModelConfig) -> bool {
        (self.layers, self.kv_heads) == (config.layers as usize, config.kv_heads as usize)
    }

    /// Bins of a curve at length `context`.
    pub(crate) fn bins(&self, context: u32) -> usize {
        context.div_ceil(self.grid.block()) as usize
    }

    /// The estimator that `curve.<N>` holds.
    pub(crate) fn estimator(&self) -> Option<Estimator> {
        self.metadata
            .get("estimator")
            .and_then(|name| Estimator::from_name(name))
    }

    /// Mean over all samples of all kinds at one length.
    pub(crate) fn mean(&self, length: &LengthCurves, estimator: usize, values: usize) -> Vec<f64> {
        let total: u32 = length.kinds.values().map(|kind| kind.samples).sum();
        let mut mean = vec![0.0; values];
        for kind in length.kinds.values() {
            let weight = f64::from(kind.samples) / f64::from(total.max(1));
            for (sum, value) in mean.iter_mut().zip(&kind.mean[estimator]) {
                *sum += weight * value;
            }
        }
        mean
    }

    /// The bytes of the file.
    pub(crate) fn to_bytes(&self) -> Result<Vec<u8>, CurveError> {
        let mut tensors: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
        let mut push = |name: String, shape: Vec<usize>, values: &[f64]| {
            tensors.push((
                name,
                shape,
                values
                    .iter()
                    .flat_map(|value| value.to_le_bytes())
                    .collect(),
            ));
        };
        let chosen = self.estimator().unwrap_or(Estimator::JointSquare);
        for (&context, length) in &self.lengths {
            let shape = vec![self.layers, self.kv_heads, self.bins(context)];
            let values = shape.iter().product();
            for (index, estimator) in Estimator::ALL.into_iter().enumerate() {
                if !self.has(estimator) {
                    continue;
                }
                let mean = self.mean(length, index, values);
                if estimator == chosen {
                    push(format!("curve.{context}"), shape.clone(), &mean);
                }
                push(
                    format!("curve.{}.{context}", estimator.name()),
                    shape.clone(),
                    &mean,
                );
                for (kind, curves) in &length.kinds {
                    push(
                        format!("kind.{kind}.{}.{context}", estimator.name()),
                        shape.clone(),
                        &curves.mean[index],
                    );
                }
            }
            if let Some(maps) = &length.blocks {
                let shape = vec![self.layers, maps.heads, maps.side, maps.side];
                push(format!("influence_abs.{context}"), shape.clone(), &maps.abs);
                push(format!("influence_signed.{context}"), shape, &maps.signed);
            }
        }
        tensors.sort_by(|a, b| a.0.cmp(&b.0));
        let views = tensors
            .iter()
            .map(|(name, shape, bytes)| {
                TensorView::new(Dtype::F64, shape.clone(), bytes)
                    .map(|view| (name.as_str(), view))
                    .map_err(|error| CurveError::Format(error.to_string()))
            })
            .collect::<Result<Vec<_>, _>>()?;
        // One metadata entry: the safetensors crate keeps metadata in a hash map, whose order would change the bytes.
        let mut document = serde_json::Map::new();
        for (key, value) in &self.metadata {
            document.insert(key.clone(), value.clone().into());
        }
        let lengths: Vec<u32> = self.lengths.keys().copied().collect();
        document.insert("lengths".into(), lengths.into());
        document.insert("sink".into(), self.grid.sink().into());
        document.insert("block".into(), self.grid.block().into());
        let counts: serde_json::Map<String, serde_json::Value> = self
            .lengths
            .iter()
            .map(|(context, length)| {
                let kinds: serde_json::Map<String, serde_json::Value> = length
                    .kinds
                    .iter()
                    .map(|(kind, curves)| (kind.clone(), curves.samples.into()))
                    .collect();
                (context.to_string(), kinds.into())
            })
            .collect();
        document.insert("samples".into(), counts.into());
        let text = serde_json::Value::Object(document).to_string();
        serialize(
            views,
            Some(HashMap::from([("moa_profile".to_owned(), text)])),
        )
        .map_err(|error| CurveError::Format(error.to_string()))
    }

    /// Reads a file back, block maps included if it has them.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Self, CurveError> {
        let format = |error: safetensors::SafeTensorError| CurveError::Format(error.to_string());
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(format)?;
        let file = SafeTensors::deserialize(bytes).map_err(format)?;
        let missing = |what: &str| CurveError::Missing {
            what: what.to_owned(),
        };
        let text = header
            .metadata()
            .as_ref()
            .and_then(|map| map.get("moa_profile"))
            .ok_or_else(|| missing("the metadata entry moa_profile"))?;
        let document: serde_json::Map<String, serde_json::Value> =
            serde_json::from_str(text).map_err(|error| CurveError::Format(error.to_string()))?;
        let number = |key: &str| {
            document
                .get(key)
                .and_then(serde_json::Value::as_u64)
                .and_then(|n| u32::try_from(n).ok())
                .ok_or_else(|| missing(key))
        };
        let grid = MaskGrid::new(number("sink")?, number("block")?)
            .map_err(|error| CurveError::Format(error.to_string()))?;
        let samples = document
            .get("samples")
            .and_then(serde_json::Value::as_object)
            .ok_or_else(|| missing("samples"))?;
        let mut curves = Self {
            layers: 0,
            kv_heads: 0,
            grid,
            lengths: BTreeMap::new(),
            metadata: BTreeMap::new(),
        };
        for (context, kinds) in samples {
            let context: u32 = context
                .parse()
                .map_err(|_not_a_number| CurveError::Format(format!("length {context}")))?;
            let mut length = LengthCurves::default();
            for (kind, count) in kinds.as_object().ok_or_else(|| missing("kinds"))? {
                let count = count
                    .as_u64()
                    .and_then(|n| u32::try_from(n).ok())
                    .ok_or_else(|| missing("sample counts"))?;
                let mut mean = Vec::new();
                for estimator in Estimator::ALL {
                    let name = format!("kind.{kind}.{}.{context}", estimator.name());
                    // The one that samples of other estimators go without.
                    if estimator == Estimator::PerEntry && file.tensor(&name).is_err() {
                        mean.push(Vec::new());
                        continue;
                    }
                    mean.push(curves.read(&file, &name, context)?);
                }
                length.kinds.insert(
                    kind.clone(),
                    KindCurves {
                        samples: count,
                        mean,
                    },
                );
            }
            if length.kinds.is_empty() {
                return Err(missing(&format!("samples at length {context}")));
            }
            length.blocks = read_maps(&file, context)?;
            curves.lengths.insert(context, length);
        }
        if curves.lengths.is_empty() {
            return Err(missing("profiled lengths"));
        }
        curves.metadata = document
            .iter()
            .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
            .collect();
        Ok(curves)
    }

    fn read(
        &mut self,
        file: &SafeTensors<'_>,
        name: &str,
        context: u32,
    ) -> Result<Vec<f64>, CurveError> {
        let view = file.tensor(name).map_err(|_absent| CurveError::Missing {
            what: format!("tensor {name}"),
        })?;
        let shape = view.shape();
        if self.layers == 0 && shape.len() == 3 {
            (self.layers, self.kv_heads) = (shape[0], shape[1]);
        }
        let expected = [self.layers, self.kv_heads, self.bins(context)];
        if shape != expected || view.dtype() != Dtype::F64 || context == 0 {
            return Err(CurveError::Shape {
                name: name.to_owned(),
                found: format!("{:?} {shape:?}", view.dtype()),
                expected: format!("F64 {expected:?}"),
            });
        }
        finite(name, &view)
    }

    /// Adds the curves of more samples, weighing means by their number of samples.
    pub(crate) fn merge(&mut self, other: Self) {
        for (context, length) in other.lengths {
            let into = self.lengths.entry(context).or_default();
            let samples =
                |length: &LengthCurves| length.kinds.values().map(|kind| kind.samples).sum::<u32>();
            let (before, added) = (samples(into), samples(&length));
            if let Some(maps) = length.blocks {
                match &mut into.blocks {
                    None => into.blocks = Some(maps),
                    Some(sum) => {
                        blend(&mut sum.abs, &maps.abs, before, added);
                        blend(&mut sum.signed, &maps.signed, before, added);
                    }
                }
            }
            for (name, kind) in length.kinds {
                let sum = into.kinds.entry(name).or_default();
                if sum.samples == 0 {
                    *sum = kind;
                } else {
                    for (mean, more) in sum.mean.iter_mut().zip(&kind.mean) {
                        blend(mean, more, sum.samples, kind.samples);
                    }
                    sum.samples += kind.samples;
                }
            }
        }
    }
}

/// `mean` of `before` samples becomes that of `before + added`.
fn blend(mean: &mut [f64], more: &[f64], before: u32, added: u32) {
    let share = f64::from(added) / f64::from((before + added).max(1));
    for (mean, more) in mean.iter_mut().zip(more) {
        *mean += (more - *mean) * share;
    }
}

fn read_maps(file: &SafeTensors<'_>, context: u32) -> Result<Option<BlockMaps>, CurveError> {
    let (abs, signed) = (
        format!("influence_abs.{context}"),
        format!("influence_signed.{context}"),
    );
    let (Ok(abs_view), Ok(signed_view)) = (file.tensor(&abs), file.tensor(&signed)) else {
        return Ok(None);
    };
    match (abs_view.shape(), abs_view.shape() == signed_view.shape()) {
        (&[_, heads, side, other], true) if side == other => Ok(Some(BlockMaps {
            heads,
            side,
            abs: finite(&abs, &abs_view)?,
            signed: finite(&signed, &signed_view)?,
        })),
        (shape, _) => Err(CurveError::Shape {
            name: abs,
            found: format!("{shape:?}"),
            expected: "[layer, head, n, n], as influence_signed".into(),
        }),
    }
}

/// The f64 values of a tensor, all of them finite.
fn finite(name: &str, view: &TensorView<'_>) -> Result<Vec<f64>, CurveError> {
    if view.dtype() != Dtype::F64 {
        return Err(CurveError::Shape {
            name: name.to_owned(),
            found: format!("{:?}", view.dtype()),
            expected: "F64".into(),
        });
    }
    let values: Vec<f64> = view
        .data()
        .chunks_exact(8)
        .map(|bytes| f64::from_le_bytes(bytes.try_into().unwrap_or_default()))
        .collect();
    match values.iter().position(|value| !value.is_finite()) {
        Some(index) => Err(CurveError::NotFinite {
            name: name.to_owned(),
            value: values[index],
            index,
        }),
        None => Ok(values),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Curves {
        let grid = MaskGrid::new(8, 8).unwrap();
        let kind = |samples, scale: f64| KindCurves {
            samples,
            mean: Estimator::ALL
                .iter()
                .map(|_| (0..2 * 3 * 5).map(|i| f64::from(i) * scale).collect())
                .collect(),
        };
        let kinds = BTreeMap::from([
            ("lines".to_owned(), kind(3, 1.0)),
            ("text".to_owned(), kind(1, 5.0)),
        ]);
        Curves {
            layers: 2,
            kv_heads: 3,
            grid,
            lengths: BTreeMap::from([(
                37,
                LengthCurves {
                    kinds,
                    blocks: None,
                },
            )]),
            metadata: BTreeMap::from([
                ("estimator".to_owned(), "joint-abs".to_owned()),
                ("seed".to_owned(), "7".to_owned()),
            ]),
        }
    }

    #[test]
    fn a_sample_may_lack_per_entry_costs_and_a_profile_may_not() {
        let mut sample = example();
        for kind in sample.lengths.get_mut(&37).unwrap().kinds.values_mut() {
            kind.mean[Estimator::PerEntry.index()].clear();
        }
        let read = Curves::from_bytes(&sample.to_bytes().unwrap()).unwrap();
        assert!(!read.has(Estimator::PerEntry) && read.has(Estimator::JointSquare));
        let mut sum = read.clone();
        sum.merge(read.clone());
        assert!(!sum.has(Estimator::PerEntry));
        let refused = read.whole().unwrap_err();
        assert!(refused.to_string().contains("per-entry"), "{refused}");
        assert!(example().whole().is_ok());
    }

    #[test]
    fn a_profile_survives_the_disk() {
        let curves = example();
        let bytes = curves.to_bytes().unwrap();
        assert_eq!(
            bytes,
            example().to_bytes().unwrap(),
            "same inputs, same bytes"
        );
        let read = Curves::from_bytes(&bytes).unwrap();
        assert_eq!(read.metadata["seed"], "7");
        assert_eq!(read.estimator(), Some(Estimator::JointAbs));
        assert_eq!(
            read.lengths[&37].kinds["text"].mean,
            curves.lengths[&37].kinds["text"].mean
        );
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let mean = file.tensor("curve.37").unwrap();
        assert_eq!(mean.shape(), [2, 3, 5]);
        assert_eq!(
            f64::from_le_bytes(mean.data()[8..16].try_into().unwrap()),
            (3.0 + 5.0) / 4.0
        );
    }

    #[test]
    fn merging_samples_gives_their_mean() {
        let mut sum = example();
        sum.lengths.clear();
        sum.merge(example());
        assert_eq!(
            sum.lengths[&37].kinds["text"].mean,
            example().lengths[&37].kinds["text"].mean
        );
        let mut more = example();
        let kind = more
            .lengths
            .get_mut(&37)
            .unwrap()
            .kinds
            .get_mut("text")
            .unwrap();
        kind.samples = 3;
        kind.mean
            .iter_mut()
            .flatten()
            .for_each(|value| *value = 1.0);
        sum.merge(more);
        let kind = &sum.lengths[&37].kinds["text"];
        assert_eq!(kind.samples, 4);
        assert_eq!(kind.mean[0][2], (10.0 + 3.0) / 4.0);
    }

    #[test]
    fn damage_is_an_error_and_never_a_panic() {
        let bytes = example().to_bytes().unwrap();
        for cut in [0, 7, 8, 100, bytes.len() - 1] {
            assert!(Curves::from_bytes(&bytes[..cut]).is_err());
        }
        let header = usize::try_from(u64::from_le_bytes(bytes[..8].try_into().unwrap())).unwrap();
        for index in 0..header + 8 {
            let mut damaged = bytes.clone();
            damaged[index] ^= 4;
            let _ = Curves::from_bytes(&damaged);
        }
        let mut poisoned = example();
        poisoned
            .lengths
            .get_mut(&37)
            .unwrap()
            .kinds
            .get_mut("text")
            .unwrap()
            .mean[0][3] = f64::NAN;
        let error = Curves::from_bytes(&poisoned.to_bytes().unwrap()).unwrap_err();
        assert!(matches!(error, CurveError::NotFinite { .. }), "{error}");
    }
}
