//! The comparator of kernel tests: `|actual - expected| <= abs + rel * |expected|`, element by element.
//!
//! NaN never passes, on either side; an infinity passes only against the same infinity; a wrong length never
//! passes. It deliberately has no per-dtype defaults: a tolerance stands in the test that uses it, with the
//! measured maximum beside it.

use std::fmt;

/// How far an element may be off: `abs + rel * |expected|`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tolerance {
    /// Allowed anywhere.
    pub abs: f64,
    /// Allowed per unit of the expected value.
    pub rel: f64,
}

impl Tolerance {
    /// Every bit of the value counts.
    pub const EXACT: Self = Self { abs: 0.0, rel: 0.0 };

    /// A tolerance of `abs + rel * |expected|`.
    pub const fn new(abs: f64, rel: f64) -> Self {
        Self { abs, rel }
    }

    /// A part of the largest finite magnitude in `expected`, the same for every element.
    pub fn of_largest<T: Copy + Into<f64>>(part: f64, expected: &[T]) -> Self {
        let largest = expected
            .iter()
            .map(|&value| value.into().abs())
            .filter(|value| value.is_finite())
            .fold(0.0, f64::max);
        Self::new(part * largest, 0.0)
    }
}

/// One element that is not what it should be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mismatch {
    /// Where.
    pub index: usize,
    /// What came out.
    pub actual: f64,
    /// What the twin says.
    pub expected: f64,
}

/// What [`compare`] found; it must be asked whether it [`passed`](Self::passed).
#[must_use = "a comparison that nobody looks at proves nothing"]
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// Elements in `actual` and in `expected`.
    pub lengths: (usize, usize),
    /// Largest absolute error among the elements that are finite on both sides.
    pub max_error: f64,
    /// Index of the largest absolute error.
    pub max_error_index: usize,
    /// Elements with a NaN on either side.
    pub nans: usize,
    /// Elements outside the tolerance, NaN included.
    pub mismatches: usize,
    /// The first of them.
    pub first_mismatch: Option<Mismatch>,
}

/// How far `actual` is from `expected` as a part of its norm.
///
/// # Panics
/// On different lengths: what is missing is no small difference.
pub fn part_of_norm<A, E>(actual: &[A], expected: &[E]) -> f64
where
    A: Copy + Into<f64>,
    E: Copy + Into<f64>,
{
    assert_eq!(actual.len(), expected.len(), "as many values");
    let pairs = actual.iter().zip(expected);
    let error: f64 = pairs.map(|(&a, &e)| (a.into() - e.into()).powi(2)).sum();
    let norm: f64 = expected.iter().map(|&e| e.into().powi(2)).sum();
    (error / norm).sqrt()
}

/// Compares a kernel's output with its twin's.
pub fn compare<A, E>(actual: &[A], expected: &[E], tolerance: Tolerance) -> Comparison
where
    A: Copy + Into<f64>,
    E: Copy + Into<f64>,
{
    let mut result = Comparison {
        lengths: (actual.len(), expected.len()),
        max_error: 0.0,
        max_error_index: 0,
        nans: 0,
        mismatches: 0,
        first_mismatch: None,
    };
    for (index, (&actual, &expected)) in actual.iter().zip(expected).enumerate() {
        let (actual, expected): (f64, f64) = (actual.into(), expected.into());
        let error = (actual - expected).abs();
        if actual.is_nan() || expected.is_nan() {
            result.nans += 1;
        } else if error.is_finite() && error > result.max_error {
            (result.max_error, result.max_error_index) = (error, index);
        }
        // `inf - inf` is NaN, so equal infinities are asked for by name; a NaN fails every comparison.
        let same_infinity = actual.is_infinite() && actual == expected;
        let within =
            expected.is_finite() && error <= tolerance.abs + tolerance.rel * expected.abs();
        if !(within || same_infinity) {
            result.mismatches += 1;
            result.first_mismatch.get_or_insert(Mismatch {
                index,
                actual,
                expected,
            });
        }
    }
    result
}

impl Comparison {
    /// Whether the lengths agree, nothing is NaN and every element is within the tolerance.
    pub fn passed(&self) -> bool {
        self.lengths.0 == self.lengths.1 && self.mismatches == 0
    }

    /// Panics with the report unless the comparison passed; returns the largest error, to be recorded.
    #[track_caller]
    pub fn assert(&self, label: &str) -> f64 {
        assert!(self.passed(), "{label}: {self}");
        self.max_error
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (actual, expected) = self.lengths;
        if actual != expected {
            return write!(f, "{actual} elements, expected {expected}");
        }
        write!(
            f,
            "{} of {expected} elements differ ({} NaN), largest error {:.3e} at {}",
            self.mismatches, self.nans, self.max_error, self.max_error_index
        )?;
        if let Some(first) = self.first_mismatch {
            write!(
                f,
                ", first at {}: got {}, expected {}",
                first.index, first.actual, first.expected
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOLERANCE: Tolerance = Tolerance::new(1e-3, 1e-2);

    #[test]
    fn tolerance_is_absolute_plus_relative() {
        let expected = [0.0f64, 10.0, -10.0];
        assert!(compare(&[0.0009f32, 10.1, -9.9], &expected, TOLERANCE).passed());
        let result = compare(&[0.0, 10.0, -10.2f32], &expected, TOLERANCE);
        assert!(!result.passed());
        assert_eq!((result.mismatches, result.max_error_index), (1, 2));
        assert!(compare(&[1.0f32], &[1.0f32], Tolerance::EXACT).passed());
        assert!(!compare(&[1.0f32], &[1.0f64 + 1e-15], Tolerance::EXACT).passed());
        assert_eq!(Tolerance::of_largest(0.1, &[1.0f64, -20.0]).abs, 2.0);
    }

    #[test]
    fn nan_never_passes() {
        let wide = Tolerance::new(f64::INFINITY, 0.0);
        for (actual, expected) in [(f32::NAN, 0.0), (0.0, f64::NAN), (f32::NAN, f64::NAN)] {
            let result = compare(&[actual], &[expected], wide);
            assert!(!result.passed());
            assert_eq!(result.nans, 1);
        }
    }

    #[test]
    fn infinities_pass_only_against_themselves() {
        let wide = Tolerance::new(1e30, 0.0);
        assert!(compare(&[f32::NEG_INFINITY], &[f64::NEG_INFINITY], wide).passed());
        assert!(!compare(&[f32::INFINITY], &[f64::NEG_INFINITY], wide).passed());
        assert!(!compare(&[f32::INFINITY], &[0.0f64], wide).passed());
        assert!(!compare(&[0.0f32], &[f64::INFINITY], wide).passed());
    }

    #[test]
    fn a_wrong_length_never_passes() {
        assert!(!compare(&[0.0f32], &[0.0f64, 0.0], TOLERANCE).passed());
        assert!(!compare(&[] as &[f32], &[0.0f64], TOLERANCE).passed());
    }
}
