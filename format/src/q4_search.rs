//! The search for a q4 group's scale and minimum.
//!
//! Spreading the range evenly lets the two outermost weights decide the error of all. So several divisions of
//! the range are tried; for each, least squares gives the scale and minimum that fit the nibbles, both are
//! rounded to f16, and the nibbles are taken anew from what is really stored. The least squared error wins.
//! No calibration data enters here.

use half::f16;

use crate::groups::{GROUP, Q4Group};

/// Levels above the minimum.
const LEVELS: f32 = 15.0;
/// Rounds to the nearest integer when added and taken away again, for magnitudes below 2^22; unlike a cast it
/// vectorizes on every target.
const ROUND: f32 = 12_582_912.0;
const LANES: usize = 8;

type Group = [f32; GROUP];

/// The best group found, or `None` where a scale or a minimum would not be finite in f16.
pub(crate) fn fit(weights: &Group) -> Option<Q4Group> {
    let low = weights.iter().copied().fold(f32::INFINITY, f32::min);
    let high = weights.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let range = high - low;
    let mut best = Best::new(weights);
    best.offer(range / LEVELS, low);
    if range > 0.0 && range.is_finite() {
        // A little less than the range to a little more: levels fall on dense places, outliers are clamped.
        for step in -6i8..=6 {
            let levels = LEVELS + 0.2 * f32::from(step);
            let quants = quantize(weights, levels / range, low);
            let (scale, minimum) = least_squares(weights, &quants);
            best.offer(scale, minimum);
        }
        for _ in 0..2 {
            let (scale, minimum) = least_squares(weights, &best.quants);
            best.offer(scale, minimum);
        }
    }
    best.group()
}

struct Best<'a> {
    weights: &'a Group,
    error: f32,
    scale: f16,
    minimum: f16,
    quants: Group,
}

impl<'a> Best<'a> {
    fn new(weights: &'a Group) -> Self {
        Self {
            weights,
            error: f32::INFINITY,
            scale: f16::INFINITY,
            minimum: f16::ZERO,
            quants: [0.0; GROUP],
        }
    }

    /// Tries a scale with the minimum that came with it, and with the one that fits the rounded scale.
    fn offer(&mut self, scale: f32, minimum: f32) {
        let scale = f16::from_f32(scale);
        if !scale.is_finite() {
            return;
        }
        let quants = self.try_pair(scale, f16::from_f32(minimum));
        let mean = sum(|i| self.weights[i] - scale.to_f32() * quants[i]) / GROUP as f32;
        self.try_pair(scale, f16::from_f32(mean));
    }

    fn try_pair(&mut self, scale: f16, minimum: f16) -> Group {
        let (s, m) = (scale.to_f32(), minimum.to_f32());
        let inverse = if s == 0.0 { 0.0 } else { 1.0 / s };
        let quants = quantize(self.weights, inverse, m);
        let error = sum(|i| {
            let off = s * quants[i] + m - self.weights[i];
            off * off
        });
        if minimum.is_finite() && error < self.error {
            (self.error, self.scale, self.minimum, self.quants) = (error, scale, minimum, quants);
        }
        quants
    }

    fn group(&self) -> Option<Q4Group> {
        let mut nibbles = [0; GROUP];
        for (nibble, quant) in nibbles.iter_mut().zip(self.quants) {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "an integer in 0..=15 by `quantize`"
            )]
            {
                *nibble = quant as u8;
            }
        }
        self.scale.is_finite().then_some(Q4Group {
            scale: self.scale,
            minimum: self.minimum,
            nibbles,
        })
    }
}

/// Nearest levels, as floats.
fn quantize(weights: &Group, inverse: f32, minimum: f32) -> Group {
    let mut quants = [0.0; GROUP];
    for (quant, weight) in quants.iter_mut().zip(weights) {
        let level = ((weight - minimum) * inverse).clamp(0.0, LEVELS);
        *quant = level + ROUND - ROUND;
    }
    quants
}

/// Scale and minimum that fit `quants` to `weights` best; a scale of 0 where all quants are equal.
fn least_squares(weights: &Group, quants: &Group) -> (f32, f32) {
    let n = GROUP as f32;
    let mean_q = sum(|i| quants[i]) / n;
    let mean_w = sum(|i| weights[i]) / n;
    let variance = sum(|i| (quants[i] - mean_q) * (quants[i] - mean_q));
    let covariance = sum(|i| (quants[i] - mean_q) * (weights[i] - mean_w));
    let scale = if variance > 0.0 {
        covariance / variance
    } else {
        0.0
    };
    (scale, mean_w - scale * mean_q)
}

/// A sum in a fixed order that the compiler can vectorize.
fn sum(value: impl Fn(usize) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    for start in (0..GROUP).step_by(LANES) {
        for (lane, total) in lanes.iter_mut().enumerate() {
            *total += value(start + lane);
        }
    }
    lanes.iter().sum()
}
