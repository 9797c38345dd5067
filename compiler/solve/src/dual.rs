//! Prices: maximizes a concave, piecewise linear function of a few non-negative variables by the ellipsoid method.
//!
//! Subgradient steps need a step size and stall at kinks; ellipsoids with deep cuts need neither scale nor schedule,
//! and for the one to eight rows of a plan's budgets they end in a few hundred evaluations. Every value seen is a
//! valid bound, so nothing here has to be exact.

/// The function at one point.
#[derive(Debug, Clone)]
pub(crate) struct Point {
    /// A lower bound of the function, which is what the search keeps the best of.
    pub(crate) value: f64,
    /// Value of a linear function that is nowhere below the function; equal to `value` where that is exact.
    pub(crate) ceiling: f64,
    /// Slope of that linear function.
    pub(crate) slope: Vec<f64>,
}

/// The best point seen.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Best {
    pub(crate) prices: Vec<f64>,
    pub(crate) value: f64,
}

/// Searches the box `center[i] +- radius[i]`, cut at zero. Stops when no point of the box can be better by
/// `tolerance`, after `evaluations`, or when `evaluate` returns `None`.
pub(crate) fn maximize(
    center: &[f64],
    radius: &[f64],
    tolerance: f64,
    evaluations: usize,
    mut evaluate: impl FnMut(&[f64]) -> Option<Point>,
) -> Option<Best> {
    let mut best: Option<Best> = None;
    let mut keep = |prices: &[f64], point: &Point| {
        if best.as_ref().is_none_or(|best| point.value > best.value) {
            best = Some(Best {
                prices: prices.to_vec(),
                value: point.value,
            });
        }
        best.as_ref().map_or(point.value, |best| best.value)
    };
    match center.len() {
        0 => {
            let point = evaluate(&[])?;
            keep(&[], &point);
        }
        1 => {
            let (mut low, mut high) = ((center[0] - radius[0]).max(0.0), center[0] + radius[0]);
            for _ in 0..evaluations {
                let middle = (low + high) / 2.0;
                let Some(point) = evaluate(&[middle]) else {
                    break;
                };
                keep(&[middle], &point);
                if point.slope[0] > 0.0 {
                    low = middle;
                } else {
                    high = middle;
                }
                if point.slope[0].abs() * (high - low) <= tolerance {
                    break;
                }
            }
        }
        _ => ellipsoid(center, radius, tolerance, evaluations, |prices| {
            let point = evaluate(prices)?;
            let value = keep(prices, &point);
            Some((point, value))
        }),
    }
    best
}

fn ellipsoid(
    center: &[f64],
    radius: &[f64],
    tolerance: f64,
    evaluations: usize,
    mut evaluate: impl FnMut(&[f64]) -> Option<(Point, f64)>,
) {
    #[expect(clippy::cast_precision_loss, reason = "a handful of rows")]
    let dim = center.len() as f64;
    let mut center = center.to_vec();
    // The ellipsoid is the image of the unit ball under `axes`: in this form rounding cannot make it hollow. It starts
    // as the smallest one around the box, with semi-axes longer by the root of the dimension.
    let mut axes: Vec<Vec<f64>> = (0..center.len())
        .map(|row| {
            (0..center.len())
                .map(|col| {
                    if row == col {
                        dim.sqrt() * radius[row]
                    } else {
                        0.0
                    }
                })
                .collect()
        })
        .collect();
    // Cuts at zero cost no evaluation but may follow each other, so the steps are bounded as well.
    let mut evaluated = 0;
    for _ in 0..evaluations.saturating_mul(4) {
        let negative = (0..center.len())
            .filter(|&row| center[row] < 0.0)
            .min_by(|&a, &b| center[a].total_cmp(&center[b]));
        // The half space to keep is { x : direction . (x - center) <= -violation }.
        let (direction, violation) = if let Some(row) = negative {
            let mut direction = vec![0.0; center.len()];
            direction[row] = -1.0;
            (direction, -center[row])
        } else {
            if evaluated == evaluations {
                return;
            }
            evaluated += 1;
            let Some((point, best)) = evaluate(&center) else {
                return;
            };
            let direction: Vec<f64> = point.slope.iter().map(|slope| -slope).collect();
            let violation = (best - point.ceiling).max(0.0);
            if length(&pulled(&axes, &direction)) - violation <= tolerance {
                return;
            }
            (direction, violation)
        };
        let mut unit = pulled(&axes, &direction);
        let reach = length(&unit);
        let depth = violation / reach;
        if depth.is_nan() || depth >= 1.0 {
            return;
        }
        for component in &mut unit {
            *component /= reach;
        }
        let axis: Vec<f64> = axes.iter().map(|row| dot(row, &unit)).collect();
        let step = (1.0 + dim * depth) / (dim + 1.0);
        for (center, axis) in center.iter_mut().zip(&axis) {
            *center -= step * axis;
        }
        let grow = (dim * dim * (1.0 - depth * depth) / (dim * dim - 1.0)).sqrt();
        let flatten = 1.0 - (1.0 - 2.0 * step / (1.0 + depth)).max(0.0).sqrt();
        for (row, axis) in axes.iter_mut().zip(&axis) {
            for (cell, unit) in row.iter_mut().zip(&unit) {
                *cell = grow * (*cell - flatten * axis * unit);
            }
        }
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// `direction` seen from the unit ball; its length is how far the ellipsoid reaches along `direction`.
fn pulled(axes: &[Vec<f64>], direction: &[f64]) -> Vec<f64> {
    (0..direction.len())
        .map(|col| {
            axes.iter()
                .zip(direction)
                .map(|(row, component)| row[col] * component)
                .sum()
        })
        .collect()
}

fn length(vector: &[f64]) -> f64 {
    dot(vector, vector).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// min over planes of `offset + slope . x`.
    fn roof(planes: &[(f64, Vec<f64>)], x: &[f64]) -> Point {
        let (offset, slope) = planes
            .iter()
            .min_by(|a, b| (a.0 + dot(&a.1, x)).total_cmp(&(b.0 + dot(&b.1, x))))
            .unwrap();
        let value = offset + dot(slope, x);
        Point {
            value,
            ceiling: value,
            slope: slope.clone(),
        }
    }

    #[test]
    fn one_dimension_is_bisected() {
        let planes = [(0.0, vec![2.0]), (30.0, vec![-1.0])];
        let best = maximize(&[500.0], &[500.0], 1e-9, 100, |x| Some(roof(&planes, x))).unwrap();
        assert!(
            (best.value - 20.0).abs() < 1e-6 && (best.prices[0] - 10.0).abs() < 1e-6,
            "{best:?}"
        );
    }

    #[test]
    fn corners_of_badly_scaled_roofs_are_found() {
        // The top is at (2, 300, 0): value 1.
        let planes = [
            (1.0 - 2.0, vec![1.0, 0.0, -1.0]),
            (1.0 + 2.0, vec![-1.0, 0.0, -2.0]),
            (1.0 - 300.0, vec![0.0, 1.0, -0.5]),
            (1.0 + 300.0, vec![0.0, -1.0, -3.0]),
        ];
        let mut evaluations = 0;
        let best = maximize(&[500.0; 3], &[500.0; 3], 1e-7, 2000, |x| {
            evaluations += 1;
            Some(roof(&planes, x))
        })
        .unwrap();
        assert!(
            (best.value - 1.0).abs() < 1e-5,
            "{best:?} after {evaluations}"
        );
        assert!(best.prices.iter().all(|price| *price >= 0.0));
        assert!(evaluations < 600, "{evaluations} evaluations");
    }

    #[test]
    fn the_search_stops_when_told() {
        let planes = [(0.0, vec![1.0, 1.0]), (9.0, vec![-1.0, -1.0])];
        let mut left = 3;
        let best = maximize(&[8.0; 2], &[8.0; 2], 0.0, 1000, |x| {
            left -= 1;
            (left >= 0).then(|| roof(&planes, x))
        });
        assert!(best.is_some() && left < 0);
        assert_eq!(maximize(&[8.0; 2], &[8.0; 2], 0.0, 1000, |_| None), None);
    }
}
