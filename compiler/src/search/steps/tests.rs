//! A search on a loss that is known in closed form.

use std::collections::BTreeMap;

use moa_mask::MaskGrid;

use super::*;

/// What each head loses by seeing nothing.
const NEEDS: [f64; 8] = [0.2, 0.3, 1.5, 0.4, 0.9, 0.1, 0.6, 0.5];

/// A loss that no sum over heads at the dense point sees: narrowing the first two heads is cheap for each alone and dear
/// together. Every head has a need of its own as well.
struct Valley<'a> {
    programme: &'a Programme,
    steps: usize,
    visited: Vec<Vec<usize>>,
}

impl Valley<'_> {
    fn share(&self, rule: usize) -> f64 {
        f64::from(self.programme.rules[rule].span(1024, self.programme.grid)) / 1024.0
    }

    fn loss(&self, choice: &[usize]) -> f64 {
        let own: f64 = choice
            .iter()
            .zip(NEEDS)
            .map(|(&rule, need)| need * (1.0 - self.share(rule)).powi(2))
            .sum();
        let (a, b) = (self.share(choice[0]), self.share(choice[1]));
        own + 2.0 * (1.0 - a) * (1.0 - b)
    }
}

impl Landscape for Valley<'_> {
    fn starts(&mut self) -> anyhow::Result<Vec<Vec<f64>>> {
        let rules = 0..self.programme.rules.len();
        let table = NEEDS.iter().flat_map(|need| {
            let narrow = rules.clone().map(|rule| 1.0 - self.share(rule));
            narrow.map(move |narrow| need * narrow.powi(2))
        });
        Ok(vec![table.collect()])
    }

    fn model(&mut self, at: &[usize], _: usize) -> anyhow::Result<Local> {
        self.visited.push(at.to_vec());
        let mut local = Local {
            first: Vec::new(),
            second: Vec::new(),
            error: Vec::new(),
        };
        for head in 0..8 {
            let own = self.share(at[head]);
            let mut slope = -2.0 * NEEDS[head] * (1.0 - own);
            if head < 2 {
                slope -= 2.0 * (1.0 - self.share(at[1 - head]));
            }
            for rule in 0..self.programme.rules.len() {
                let way = self.share(rule) - own;
                local.first.push(slope * way);
                local.second.push(NEEDS[head] * way.powi(2));
                local.error.push(0.0);
            }
        }
        Ok(local)
    }

    fn measure(&mut self, choice: &[usize]) -> anyhow::Result<Measured> {
        Ok(Measured {
            task: Some(self.loss(choice)),
            text: None,
            loss: self.loss(choice),
            parts: BTreeMap::new(),
        })
    }

    fn step(&mut self, _: &Step) -> anyhow::Result<()> {
        self.steps += 1;
        Ok(())
    }
}

#[test]
fn budgets_fall_in_equal_ratios_from_the_square_root() {
    let round = |list: Vec<f64>| -> Vec<f64> {
        list.iter().map(|b| (b * 1000.0).round() / 1000.0).collect()
    };
    assert_eq!(round(budgets(0.25, 3)), [0.5, 0.354, 0.25]);
    assert_eq!(budgets(0.5, 1), [0.5]);
    assert_eq!(round(budgets(0.25, 2)), [0.5, 0.25]);
}

#[test]
fn a_narrower_density_goes_on_where_the_wider_one_ended() {
    let round = |list: Vec<f64>| -> Vec<f64> {
        list.iter().map(|b| (b * 1000.0).round() / 1000.0).collect()
    };
    assert_eq!(round(budgets_below(0.5, 0.25, 2)), [0.354, 0.25]);
    assert_eq!(budgets_below(0.5, 0.25, 0), [0.25]);
    let grid = MaskGrid::new(16, 16).unwrap();
    let programme = Programme::new((4, 2), grid, &[1024], 1024, None);
    let spec = StepSpec {
        density: 0.5,
        steps: 2,
        rounds: 3,
        damping: 0.5,
        curvature: 1.0,
    };
    let mut valley = Valley {
        programme: &programme,
        steps: 0,
        visited: Vec::new(),
    };
    let stages = Stages::default();
    let wide = search(&programme, &spec, None, &mut valley, &stages).unwrap();
    let narrow = StepSpec {
        density: 0.3,
        ..spec
    };
    valley.visited.clear();
    let start = wide.start();
    let found = search(&programme, &narrow, Some(&start), &mut valley, &stages).unwrap();
    assert_eq!(valley.visited[0], wide.best.choice);
    let kinds: Vec<StepKind> = found.steps.iter().map(|step| step.kind).collect();
    assert_eq!(
        kinds[..3],
        [StepKind::OneShot, StepKind::Tighten, StepKind::Tighten]
    );
    assert!(found.best.measured.loss <= found.steps[0].measured.loss);
    for density in programme.densities(&found.best.choice).values() {
        assert!(*density <= 0.3 + 1e-9);
    }
    assert!(stages.secs()["solving"] > 0.0);
}

#[test]
fn steps_find_what_one_programme_does_not() {
    let grid = MaskGrid::new(16, 16).unwrap();
    let programme = Programme::new((4, 2), grid, &[1024], 1024, None);
    let run = |spec: &StepSpec| {
        let mut valley = Valley {
            programme: &programme,
            steps: 0,
            visited: Vec::new(),
        };
        let found = search(&programme, spec, None, &mut valley, &Stages::default()).unwrap();
        assert_eq!(valley.steps, found.steps.len());
        (found, valley.visited)
    };
    let spec = StepSpec {
        density: 0.4,
        steps: 3,
        rounds: 4,
        damping: 0.5,
        curvature: 1.0,
    };
    let (found, visited) = run(&spec);
    let loss = |kind: StepKind| {
        let of_kind = found.steps.iter().filter(|step| step.kind == kind);
        of_kind
            .map(|step| step.measured.loss)
            .fold(f64::INFINITY, f64::min)
    };
    assert!(
        found.best.measured.loss < 0.9 * loss(StepKind::OneShot),
        "{found:?}"
    );
    let least = found
        .steps
        .iter()
        .filter(|step| step.density <= spec.density)
        .map(|step| step.measured.loss)
        .fold(f64::INFINITY, f64::min);
    assert_eq!(found.best.measured.loss, least, "the best is kept");
    for density in programme.densities(&found.best.choice).values() {
        assert!(*density <= spec.density + 1e-9);
    }
    assert_eq!(visited.len(), 2 + 4, "two tightening steps and four rounds");
    for step in found
        .steps
        .iter()
        .filter(|step| step.kind == StepKind::Round)
    {
        assert!(step.predicted.unwrap() < 0.0, "{step:?}");
    }
    let (again, _) = run(&spec);
    assert_eq!(again.steps, found.steps, "deterministic");

    let one = StepSpec {
        steps: 1,
        rounds: 0,
        ..spec
    };
    let (one, visited) = run(&one);
    assert_eq!((one.steps.len(), visited.len()), (1, 0));
    assert_eq!(one.best.measured.loss, loss(StepKind::OneShot));
}
