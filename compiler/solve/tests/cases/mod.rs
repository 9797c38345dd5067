//! Seeded problems that look like influence: costs fall with the span, a few heads matter much more than the rest.

use moa_mask::{HeadRule, MaskGrid};
use moa_solve::{Budget, Problem, candidates};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// A problem of `layers` x `kv_heads` heads and at most `rules` candidates with budgets at 2k, 4k and 8k.
pub(crate) fn random_problem(
    layers: usize,
    kv_heads: usize,
    rules: usize,
    kv_density: f64,
    seed: u64,
) -> Problem {
    let grid = MaskGrid::default();
    let lengths = [2048, 4096, 8192];
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let all = candidates(&lengths, &lengths, grid);
    let candidates: Vec<HeadRule> = (0..rules.min(all.len()))
        .map(|at| all[at * (all.len() - 1) / (rules.min(all.len()) - 1).max(1)])
        .collect();
    let mut costs = Vec::new();
    for _ in 0..layers * kv_heads {
        let scale = (rng.random::<f64>() * 6.0).exp() * 1e-6;
        let decay = rng.random_range(0.5..8.0);
        // Each length has its own share, so that the budgets pull apart.
        let shares = [(); 3].map(|()| rng.random_range(0.2..1.0));
        for rule in &candidates {
            let mut cost = 0.0;
            for (share, length) in shares.iter().zip(lengths) {
                let part = f64::from(rule.span(length, grid)) / f64::from(length);
                cost += scale * share * ((-decay * part).exp() - (-decay).exp());
            }
            costs.push(cost * rng.random_range(0.98..1.02));
        }
    }
    Problem {
        layers,
        kv_heads,
        candidates,
        costs,
        budgets: lengths
            .map(|context| Budget {
                context,
                kv_density,
            })
            .to_vec(),
        grid,
        max_rules_per_layer: None,
    }
}
