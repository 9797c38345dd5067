//! Rotary position embedding: the frequencies, computed in f64, once for both engines.
//!
//! The convention is that of Hugging Face's `rotate_half`: channel i of a head pairs with channel
//! i + `head_dim/2`. Families that rotate only a part of a head are not supported.

use serde::{Deserialize, Serialize};

use crate::error::{Result, ensure};

/// How a model turns positions into angles.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RopeConfig {
    /// Base of the frequencies (`rope_theta`).
    pub theta: f64,
    /// How the frequencies were stretched for a longer context, if they were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scaling: Option<RopeScaling>,
}

/// A change of the frequencies.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
#[non_exhaustive]
pub enum RopeScaling {
    /// Llama 3.1 and later: low frequencies divided by `factor`, high ones kept, a smooth passage between.
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Wavelengths longer than `original_context / low_freq_factor` are stretched in full.
        low_freq_factor: f64,
        /// Wavelengths shorter than `original_context / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Context of the first training, in tokens.
        original_context: u32,
    },
    /// Every frequency divided by `factor` (position interpolation, as in vicuna-16k).
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Every frequency divided by its own number: what GGUF files carry as `rope_freqs.weight`.
    Divisors {
        /// One divisor for each of the `head_dim/2` frequencies.
        divisors: Vec<f64>,
    },
}

impl RopeConfig {
    /// Checks that every frequency will be finite and positive.
    pub fn check(&self, head_dim: u32) -> Result<()> {
        let positive = |what: &str, value: f64| {
            ensure(
                value.is_finite() && value > 0.0,
                what,
                value,
                "a finite positive number",
            )
        };
        positive("rope theta", self.theta)?;
        match &self.scaling {
            None => Ok(()),
            Some(RopeScaling::Linear { factor }) => positive("rope factor", *factor),
            Some(RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_context,
            }) => {
                positive("rope factor", *factor)?;
                positive("rope low_freq_factor", *low_freq_factor)?;
                positive("rope high_freq_factor", *high_freq_factor)?;
                ensure(
                    high_freq_factor > low_freq_factor,
                    "rope high_freq_factor",
                    high_freq_factor,
                    format!("more than low_freq_factor {low_freq_factor}"),
                )?;
                ensure(
                    *original_context > 0,
                    "rope original_context",
                    original_context,
                    "at least 1",
                )
            }
            Some(RopeScaling::Divisors { divisors }) => {
                ensure(
                    divisors.len() == (head_dim / 2) as usize,
                    "number of rope divisors",
                    divisors.len(),
                    format!("head_dim / 2 = {}", head_dim / 2),
                )?;
                divisors
                    .iter()
                    .try_for_each(|&divisor| positive("rope divisor", divisor))
            }
        }
    }

    /// The angle per token of each of the `head_dim / 2` channel pairs.
    pub fn inv_freq(&self, head_dim: u32) -> Vec<f64> {
        (0..head_dim / 2)
            .map(|pair| {
                let plain = self
                    .theta
                    .powf(-(2.0 * f64::from(pair)) / f64::from(head_dim));
                self.scale(plain, pair as usize)
            })
            .collect()
    }

    fn scale(&self, inv_freq: f64, pair: usize) -> f64 {
        match &self.scaling {
            None => inv_freq,
            Some(RopeScaling::Linear { factor }) => inv_freq / factor,
            Some(RopeScaling::Divisors { divisors }) => {
                inv_freq / divisors.get(pair).copied().unwrap_or(1.0)
            }
            Some(RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_context,
            }) => {
                let context = f64::from(*original_context);
                let wavelength = std::f64::consts::TAU / inv_freq;
                if wavelength < context / high_freq_factor {
                    inv_freq
                } else if wavelength > context / low_freq_factor {
                    inv_freq / factor
                } else {
                    let smooth = (context / wavelength - low_freq_factor)
                        / (high_freq_factor - low_freq_factor);
                    (1.0 - smooth) * inv_freq / factor + smooth * inv_freq
                }
            }
        }
    }

    /// Cosines and sines `[position][head_dim / 2]` for the given absolute positions, computed in f64.
    pub fn cos_sin(
        &self,
        head_dim: u32,
        positions: impl IntoIterator<Item = u32>,
    ) -> (Vec<f32>, Vec<f32>) {
        let inv_freq = self.inv_freq(head_dim);
        let (mut cos, mut sin) = (Vec::new(), Vec::new());
        for position in positions {
            for freq in &inv_freq {
                let (s, c) = (f64::from(position) * freq).sin_cos();
                #[expect(
                    clippy::cast_possible_truncation,
                    reason = "rounded once, to what both engines store"
                )]
                {
                    cos.push(c as f32);
                    sin.push(s as f32);
                }
            }
        }
        (cos, sin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rope(scaling: Option<RopeScaling>) -> RopeConfig {
        RopeConfig {
            theta: 500_000.0,
            scaling,
        }
    }

    fn llama3() -> RopeScaling {
        RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context: 8192,
        }
    }

    #[test]
    fn plain_frequencies_are_powers_of_theta() {
        let freqs = rope(None).inv_freq(4);
        assert_eq!(freqs.len(), 2);
        assert_eq!(freqs[0], 1.0);
        assert!((freqs[1] - 1.0 / 500_000f64.sqrt()).abs() < 1e-12);
    }

    /// Values of transformers' `_compute_llama3_parameters` for Llama-3.1-8B (`head_dim` 128), worked out by hand:
    /// pair 28 keeps its frequency (wavelength 1956 < 2048), pair 36 is divided by 8 (wavelength 10076 > 8192),
    /// pair 32 lies between: wavelength 2 pi sqrt(500000) = 4442.88, smooth = (8192/4442.88 - 1) / 3 = 0.281281.
    #[test]
    fn llama3_scaling_keeps_high_divides_low_and_blends_between() {
        let plain = rope(None).inv_freq(128);
        let scaled = rope(Some(llama3())).inv_freq(128);
        assert_eq!(scaled[0], 1.0);
        assert_eq!(scaled[28], plain[28]);
        assert_eq!(scaled[36], plain[36] / 8.0);
        assert_eq!(scaled[63], plain[63] / 8.0);
        let ratio = scaled[32] / plain[32];
        assert!(
            (ratio - (0.281_281 + (1.0 - 0.281_281) / 8.0)).abs() < 1e-5,
            "{ratio}"
        );
    }

    #[test]
    fn divisors_and_linear_agree_where_they_say_the_same() {
        let linear = rope(Some(RopeScaling::Linear { factor: 4.0 }));
        let divisors = rope(Some(RopeScaling::Divisors {
            divisors: vec![4.0; 8],
        }));
        assert_eq!(linear.inv_freq(16), divisors.inv_freq(16));
        assert!(divisors.check(16).is_ok());
        assert!(divisors.check(32).is_err(), "wrong number of divisors");
    }

    #[test]
    fn angles_are_rounded_once() {
        let (cos, sin) = rope(None).cos_sin(4, [0, 3]);
        assert_eq!(cos[..2], [1.0, 1.0]);
        assert_eq!(sin[..2], [0.0, 0.0]);
        assert!((f64::from(cos[2]) - 3f64.cos()).abs() < 3e-8);
        assert!((f64::from(sin[2]) - 3f64.sin()).abs() < 8e-9);
        assert_eq!(cos.len(), 4);
    }

    #[test]
    fn nonsense_is_refused() {
        for theta in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let config = RopeConfig {
                theta,
                scaling: None,
            };
            assert!(config.check(64).is_err(), "{theta}");
        }
        let RopeScaling::Llama3 { factor, .. } = llama3() else {
            unreachable!()
        };
        let swapped = RopeScaling::Llama3 {
            factor,
            low_freq_factor: 4.0,
            high_freq_factor: 4.0,
            original_context: 8192,
        };
        assert!(rope(Some(swapped)).check(64).is_err());
        assert!(rope(Some(llama3())).check(64).is_ok());
    }
}
