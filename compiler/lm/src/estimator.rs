//! The ways in which a window's cost is estimated, and the profile of one sample.

use std::fmt;

use moa_mask::{MaskGrid, ModelMasks};

/// How the influence of hidden keys is summed. The joint ones come out of one pass; per-entry costs are a pass of their own on some devices.
///
/// With A the attention row, g = dL/dA and D = sum of A g: hiding one entry changes the loss by
/// `A (D - g) / (1 - A)` to first order; keeping only the keys of a set K by
/// `(sum over K of A g) / (sum over K of A) - D`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Estimator {
    /// Sum over hidden entries of the magnitude of each one's own effect.
    PerEntry,
    /// Sum over rows of the magnitude of the window's joint effect.
    JointAbs,
    /// Sum over rows of the window's joint effect.
    JointSigned,
    /// Sum over rows of the positive part of the window's joint effect.
    JointPositive,
    /// Sum over rows of the square of the window's joint effect, times half the number T of target tokens: the divergence that
    /// it causes, to second order, in nats a token. For labels that the model itself would draw, the square of the effect
    /// on their summed log likelihood is twice the divergence; the loss is that sum over T.
    JointSquare,
}

impl Estimator {
    /// All of them, in the order in which [`Influence`] holds their curves.
    pub const ALL: [Self; 5] = [
        Self::PerEntry,
        Self::JointAbs,
        Self::JointSigned,
        Self::JointPositive,
        Self::JointSquare,
    ];

    /// The name on the command line and in profiles.
    pub const fn name(self) -> &'static str {
        match self {
            Self::PerEntry => "per-entry",
            Self::JointAbs => "joint-abs",
            Self::JointSigned => "joint-signed",
            Self::JointPositive => "joint-positive",
            Self::JointSquare => "joint-square",
        }
    }

    /// The estimator of a name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|estimator| estimator.name() == name)
    }

    /// Its place in [`Self::ALL`].
    pub const fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for Estimator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Which loss is taken to change.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LossKind {
    /// Mean cross entropy of the target tokens.
    #[default]
    CrossEntropy,
    /// Mean KL divergence of the masked model's next-token distribution from the dense model's, at the
    /// positions that predict target tokens. Zero, with a zero gradient, where nothing is masked.
    KlToDense,
}

/// What to profile, and where.
#[derive(Debug, Clone, Copy, Default)]
pub struct ProfileOptions<'a> {
    /// Sink and step of the spans whose costs are wanted.
    pub grid: MaskGrid,
    /// The masks that the model runs under, at the sample's length; dense if absent. The costs are then those
    /// of giving a head another span, wider or narrower, at that point.
    pub at: Option<&'a ModelMasks>,
    /// The loss.
    pub loss: LossKind,
    /// What logits are divided by before the loss; 1 if absent. Where an answer is certain its cross entropy has no slope
    /// left, whatever the heads that found it are worth: above 1 they are heard. Costs are scaled back: they count what
    /// happens to logits, as at 1; those of cross entropy, which are of first order in it, by the temperature, those of a
    /// divergence by its square.
    pub temperature: Option<f64>,
    /// Whether [`Estimator::PerEntry`] is wanted beside the joint estimators; maps imply it.
    pub per_entry: bool,
    /// Side in tokens of the blocks of per-entry influence maps; no maps if absent.
    pub blocks: Option<u32>,
}

/// Costs of spans for every KV head, from one sample.
#[derive(Debug, Clone, PartialEq)]
pub struct Influence {
    /// The loss that the profile is of.
    pub loss: f64,
    /// Layers.
    pub layers: usize,
    /// KV heads in each layer.
    pub kv_heads: usize,
    /// Spans: `ceil(N / block)` for N tokens.
    pub bins: usize,
    /// `[layer, kv_head, bin]` for each of [`Estimator::ALL`]. Bin s is the cost of the span
    /// `block * (s + 1)`, its window being `max(span - sink, 1)`, summed over rows and over the query heads
    /// that share the KV head. [`Estimator::PerEntry`]'s is empty if nobody asked.
    pub curves: [Vec<f64>; Estimator::ALL.len()],
    /// Per-entry influence by blocks, if it was asked for.
    pub maps: Option<BlockMaps>,
}

impl Influence {
    /// The curves of one estimator, `[layer, kv_head, bin]`; empty if nobody asked.
    pub fn curve(&self, estimator: Estimator) -> &[f64] {
        &self.curves[estimator.index()]
    }
}

/// Per-entry influence summed over square blocks of the attention matrix.
#[derive(Debug, Clone, PartialEq)]
pub struct BlockMaps {
    /// Query heads in each layer.
    pub heads: usize,
    /// Blocks along one side: `ceil(N / blocks)`.
    pub side: usize,
    /// Sums of magnitudes, `[layer, head, side, side]`.
    pub abs: Vec<f64>,
    /// Sums, `[layer, head, side, side]`.
    pub signed: Vec<f64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_indices_agree() {
        for (index, estimator) in Estimator::ALL.into_iter().enumerate() {
            assert_eq!(estimator.index(), index);
            assert_eq!(Estimator::from_name(estimator.name()), Some(estimator));
        }
        assert_eq!(Estimator::from_name("joint"), None);
    }
}
