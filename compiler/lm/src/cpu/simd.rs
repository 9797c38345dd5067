//! Vectorised inner loops: exponentials, sums and softmax rows.
//!
//! Plain loops over fixed lanes, which the compiler turns into the widest instructions that the machine has;
//! [`vectorized`] chooses at run time. Sums keep 16 f32 lanes over runs of at most 1,024 values and f64 above.

use pulp::Arch;

const LANES: usize = 16;
/// Values whose sum is kept in f32 lanes before it goes to f64.
const RUN: usize = 1024;

/// Runs `work` compiled for the best instruction set of this machine. Functions that it calls take part only
/// if they are `#[inline(always)]`.
#[inline]
pub(super) fn vectorized<R>(work: impl FnOnce() -> R) -> R {
    Arch::new().dispatch(work)
}

/// e^x to about one unit in the last place; 0 below -87, infinity above 88.7, NaN for NaN.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    // 1.5 * 2^23: adding it leaves the nearest integer in the low bits.
    const MAGIC: f32 = 12_582_912.0;
    let t = x.mul_add(std::f32::consts::LOG2_E, MAGIC);
    let n = t - MAGIC;
    let r = n.mul_add(-0.693_359_4, x);
    let r = n.mul_add(2.121_944_4e-4, r);
    let mut p = 1.987_569_1e-4_f32;
    p = p.mul_add(r, 1.398_2e-3);
    p = p.mul_add(r, 8.333_452e-3);
    p = p.mul_add(r, 4.166_579_6e-2);
    p = p.mul_add(r, 1.666_666_5e-1);
    p = p.mul_add(r, 0.5);
    p = (p * r).mul_add(r, r) + 1.0;
    let y = f32::from_bits(p.to_bits().wrapping_add(t.to_bits() << 23));
    let y = if x < -87.0 { 0.0 } else { y };
    let y = if x > 88.7 { f32::INFINITY } else { y };
    if x.is_nan() { x } else { y }
}

/// The largest value; negative infinity of none. NaN is passed over: the sum of exponentials will show it.
#[inline(always)]
pub(super) fn max(values: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let mut chunks = values.chunks_exact(LANES);
    for chunk in &mut chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane = if value > *lane { value } else { *lane };
        }
    }
    let mut largest = f32::NEG_INFINITY;
    for &value in lanes.iter().chain(chunks.remainder()) {
        largest = if value > largest { value } else { largest };
    }
    largest
}

/// Replaces each value by `exp(value - shift)` and returns their sum.
#[inline(always)]
pub(super) fn exp_sum(values: &mut [f32], shift: f32) -> f64 {
    let mut total = 0.0;
    for run in values.chunks_mut(RUN) {
        let mut lanes = [0.0f32; LANES];
        let mut chunks = run.chunks_exact_mut(LANES);
        for chunk in &mut chunks {
            for (lane, value) in lanes.iter_mut().zip(chunk) {
                *value = exp(*value - shift);
                *lane += *value;
            }
        }
        let mut sum = add_up(lanes);
        for value in chunks.into_remainder() {
            *value = exp(*value - shift);
            sum += *value;
        }
        total += f64::from(sum);
    }
    total
}

/// Replaces each value of `p` by `exp(value - shift)`; returns their sum and their product with `g`.
#[inline(always)]
pub(super) fn exp_sum_dot(p: &mut [f32], g: &[f32], shift: f32) -> (f64, f64) {
    let mut total = (0.0, 0.0);
    for (p, g) in p.chunks_mut(RUN).zip(g.chunks(RUN)) {
        let (mut sums, mut dots) = ([0.0f32; LANES], [0.0f32; LANES]);
        let mut p_chunks = p.chunks_exact_mut(LANES);
        let mut g_chunks = g.chunks_exact(LANES);
        for (p, g) in (&mut p_chunks).zip(&mut g_chunks) {
            for lane in 0..LANES {
                p[lane] = exp(p[lane] - shift);
                sums[lane] += p[lane];
                dots[lane] = p[lane].mul_add(g[lane], dots[lane]);
            }
        }
        let (mut sum, mut dot) = (add_up(sums), add_up(dots));
        for (p, &g) in p_chunks
            .into_remainder()
            .iter_mut()
            .zip(g_chunks.remainder())
        {
            *p = exp(*p - shift);
            sum += *p;
            dot += *p * g;
        }
        total.0 += f64::from(sum);
        total.1 += f64::from(dot);
    }
    total
}

/// Sum of `p` and its product with `g`.
#[inline(always)]
pub(super) fn sum_dot(p: &[f32], g: &[f32]) -> (f64, f64) {
    let mut total = (0.0, 0.0);
    for (p, g) in p.chunks(RUN).zip(g.chunks(RUN)) {
        let (mut sums, mut dots) = ([0.0f32; LANES], [0.0f32; LANES]);
        let mut p_chunks = p.chunks_exact(LANES);
        let mut g_chunks = g.chunks_exact(LANES);
        for (p, g) in (&mut p_chunks).zip(&mut g_chunks) {
            for lane in 0..LANES {
                sums[lane] += p[lane];
                dots[lane] = p[lane].mul_add(g[lane], dots[lane]);
            }
        }
        let (mut sum, mut dot) = (add_up(sums), add_up(dots));
        for (&p, &g) in p_chunks.remainder().iter().zip(g_chunks.remainder()) {
            sum += p;
            dot += p * g;
        }
        total.0 += f64::from(sum);
        total.1 += f64::from(dot);
    }
    total
}

/// Inner product.
#[inline(always)]
pub(super) fn dot(a: &[f32], b: &[f32]) -> f64 {
    sum_dot(a, b).1
}

#[inline(always)]
fn add_up(lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    let mut lanes = lanes;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
        width /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_good_to_two_units() {
        let mut worst = 0.0f64;
        for step in -870_000..887_000 {
            let x = step as f32 * 1e-4;
            let exact = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) - exact).abs() / exact);
        }
        assert!(worst < 1.5e-7, "{worst:e}"); // measured 9e-8
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-200.0), 0.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(100.0), f32::INFINITY);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn sums_are_right_at_every_length() {
        for len in (0..70).chain([1023, 1024, 1025, 3000]) {
            let x: Vec<f32> = (0..len).map(|i| (i as f32 * 0.7).sin() * 5.0).collect();
            let g: Vec<f32> = (0..len).map(|i| (i as f32 * 1.3).cos()).collect();
            let (mut p, mut q) = (x.clone(), x.clone());
            let shift = vectorized(|| max(&x));
            let largest = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            assert_eq!(shift, largest);
            let (sum, product) = vectorized(|| exp_sum_dot(&mut p, &g, shift));
            assert_eq!(vectorized(|| exp_sum(&mut q, shift)), sum);
            assert_eq!(vectorized(|| sum_dot(&p, &g)), (sum, product));
            assert_eq!(vectorized(|| dot(&p, &g)), product);
            let (mut exact_sum, mut exact_product) = (0.0, 0.0);
            for i in 0..len {
                let value = f64::from(x[i] - shift).exp();
                exact_sum += value;
                exact_product += value * f64::from(g[i]);
            }
            assert!(
                (sum - exact_sum).abs() <= 1e-6 * exact_sum,
                "{sum} {exact_sum}"
            );
            assert!((product - exact_product).abs() <= 1e-6 * exact_sum.max(1.0));
        }
    }
}
