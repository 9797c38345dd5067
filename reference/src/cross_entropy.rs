//! Twin of `cross_entropy`: mean negative log likelihood of target tokens, KL divergence from another
//! model's output, and the gradients of both with respect to the logits.

use crate::softmax::softmax;

/// Mean over rows of `-log softmax(logits)[target]`, and its gradient. `logits` is `[targets.len(), vocab]`.
pub fn cross_entropy(logits: &[f32], targets: &[u32]) -> (f64, Vec<f64>) {
    let rows = targets.len() as f64;
    let vocab = logits.len() / targets.len();
    let mut loss = 0.0;
    let mut d_logits = Vec::with_capacity(logits.len());
    for (row, target) in logits.chunks_exact(vocab).zip(targets) {
        let row: Vec<f64> = row.iter().copied().map(f64::from).collect();
        let (p, lse) = softmax(&row);
        let target = *target as usize;
        loss += (lse - row[target]) / rows;
        for (token, p) in p.iter().enumerate() {
            let hit = if token == target { 1.0 } else { 0.0 };
            d_logits.push((p - hit) / rows);
        }
    }
    (loss, d_logits)
}

/// Mean over `rows` of KL(softmax(teacher) || softmax(logits)), and its gradient with respect to `logits`.
pub fn kl_divergence(teacher: &[f32], logits: &[f32], rows: usize) -> (f64, Vec<f64>) {
    let vocab = logits.len() / rows;
    let mut loss = 0.0;
    let mut d_logits = Vec::with_capacity(logits.len());
    for (teacher, row) in teacher.chunks_exact(vocab).zip(logits.chunks_exact(vocab)) {
        let teacher: Vec<f64> = teacher.iter().copied().map(f64::from).collect();
        let row: Vec<f64> = row.iter().copied().map(f64::from).collect();
        let ((p, p_lse), (q, q_lse)) = (softmax(&teacher), softmax(&row));
        for token in 0..vocab {
            let log_ratio = (teacher[token] - p_lse) - (row[token] - q_lse);
            loss += p[token] * log_ratio / rows as f64;
            d_logits.push((q[token] - p[token]) / rows as f64);
        }
    }
    (loss, d_logits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_by_hand() {
        let (loss, d) = cross_entropy(&[0.0, 0.0, 100.0, 0.0], &[1, 0]);
        assert!((loss - 2.0f64.ln() / 2.0).abs() < 1e-12);
        assert!((d[0] - 0.25).abs() < 1e-12 && (d[1] + 0.25).abs() < 1e-12);
        assert!(d[2].abs() < 1e-12);
        let (same, d) = kl_divergence(&[1.0, 2.0], &[11.0, 12.0], 1);
        assert!(same.abs() < 1e-12 && d.iter().all(|d| d.abs() < 1e-12));
    }

    #[test]
    fn gradients_are_slopes() {
        let logits = [0.5f32, -1.0, 2.0, 0.25, 0.0, -0.75];
        let teacher = [1.5f32, 0.0, -2.0, 0.5, 1.0, 0.25];
        let (d_ce, d_kl) = (
            cross_entropy(&logits, &[2, 0]).1,
            kl_divergence(&teacher, &logits, 2).1,
        );
        let step = 1.0f32 / 1024.0;
        for i in 0..logits.len() {
            let (mut above, mut below) = (logits, logits);
            above[i] += step;
            below[i] -= step;
            let slope = |loss: &dyn Fn(&[f32]) -> f64| {
                (loss(&above) - loss(&below)) / (2.0 * f64::from(step))
            };
            assert!((slope(&|x| cross_entropy(x, &[2, 0]).0) - d_ce[i]).abs() < 1e-6);
            assert!((slope(&|x| kl_divergence(&teacher, x, 2).0) - d_kl[i]).abs() < 1e-6);
        }
    }
}
