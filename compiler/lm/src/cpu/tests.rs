//! Attention, its backward and influence against their f64 twins, over shapes, masks and spiky rows.

#![expect(
    clippy::cast_possible_truncation,
    reason = "the sizes of test cases are small"
)]

use moa_mask::{HeadMask, MaskGrid};
use moa_reference::attention_backward::attention_backward as backward_twin;
use moa_reference::attention_prefill::{AttentionShape as TwinShape, attention_prefill};
use moa_reference::compare::{Tolerance, compare};
use moa_reference::influence::{Influence as TwinInfluence, influence as influence_twin};

use crate::{AttentionBackward, AttentionShape, Cpu, Device, Estimator, LayerInfluence, Projected};

/// Queries, keys, values and the gradient of the output, for one layer.
struct Case {
    name: &'static str,
    shape: AttentionShape,
    masks: Vec<HeadMask>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    d_o: Vec<f32>,
}

/// Values in [-size, size) that look random.
fn noise(len: usize, seed: u32, size: f32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12_345);
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            ((state >> 8) as f32 / (1 << 23) as f32 - 1.0) * size
        })
        .collect()
}

impl Case {
    fn new(
        name: &'static str,
        heads: usize,
        head_dim: usize,
        masks: &[HeadMask],
        len: usize,
    ) -> Self {
        let shape = AttentionShape {
            heads,
            kv_heads: masks.len(),
            head_dim,
        };
        let seed = (heads * 1000 + head_dim * 10 + len) as u32;
        Self {
            name,
            shape,
            masks: masks.to_vec(),
            q: noise(len * shape.q_dim(), seed, 2.0),
            k: noise(len * shape.kv_dim(), seed + 1, 2.0),
            v: noise(len * shape.kv_dim(), seed + 2, 1.0),
            d_o: noise(len * shape.q_dim(), seed + 3, 1.0),
        }
    }

    /// Multiplies queries so that scores reach about +-`largest`.
    fn with_scores_to(mut self, largest: f32) -> Self {
        let bound = 2.0 * 2.0 * (self.shape.head_dim as f32).sqrt() / 3.0;
        self.q.iter_mut().for_each(|q| *q *= largest / bound);
        self
    }

    /// Every query's score with key `key` becomes about 25 more than with any other.
    fn with_dominant_key(mut self, key: usize) -> Self {
        let AttentionShape {
            kv_heads, head_dim, ..
        } = self.shape;
        // Channel 0 is the same in all queries and zero in all other keys.
        for q in self.q.chunks_exact_mut(head_dim) {
            q[0] = 4.0;
        }
        for (index, k) in self.k.chunks_exact_mut(head_dim).enumerate() {
            k[0] = if index / kv_heads == key {
                25.0 * (head_dim as f32).sqrt() / 4.0
            } else {
                0.0
            };
            if index / kv_heads == key {
                k[1..].fill(0.0);
            }
        }
        self.q
            .iter_mut()
            .for_each(|q| *q *= if *q == 4.0 { 1.0 } else { 0.3 });
        self
    }

    fn projected(&self) -> Projected<'_, Vec<f32>> {
        Projected {
            q: &self.q,
            k: &self.k,
            v: &self.v,
            start: 0,
        }
    }

    fn twin_shape(&self) -> TwinShape {
        TwinShape {
            heads: self.shape.heads,
            kv_heads: self.shape.kv_heads,
            head_dim: self.shape.head_dim,
        }
    }

    fn attend(&self, masks: &[HeadMask]) -> (Vec<f32>, Vec<f32>) {
        let attended = Cpu
            .attention(self.shape, &self.projected(), masks, None)
            .unwrap();
        (attended.o, attended.lse)
    }

    fn influence(
        &self,
        grid: MaskGrid,
        blocks: Option<usize>,
    ) -> crate::AttentionGradients<Vec<f32>> {
        self.influence_of(grid, true, blocks)
    }

    fn influence_of(
        &self,
        grid: MaskGrid,
        per_entry: bool,
        blocks: Option<usize>,
    ) -> crate::AttentionGradients<Vec<f32>> {
        let (_, lse) = self.attend(&self.masks);
        Cpu.attention_backward(&AttentionBackward {
            shape: self.shape,
            projected: self.projected(),
            masks: &self.masks,
            lse: &lse,
            d_o: &self.d_o,
            grid,
            per_entry,
            blocks,
        })
        .unwrap()
    }

    fn influence_twin(&self, grid: MaskGrid) -> TwinInfluence {
        influence_twin(
            self.twin_shape(),
            &self.q,
            &self.k,
            &self.v,
            &self.d_o,
            &self.masks,
            grid,
        )
    }
}

fn window(sink: u32, window: u32) -> HeadMask {
    HeadMask { sink, window }
}

/// Lengths 1, below a sink, no multiple of a tile, beyond a tile of keys; groups 1, 3, 4, 7, 8; both head sizes;
/// heads of different spans in one call; scores of +-80.
fn cases() -> Vec<Case> {
    let dense = HeadMask::DENSE;
    vec![
        Case::new("one token", 2, 64, &[dense], 1),
        Case::new("shorter than the sink", 3, 64, &[window(64, 1)], 40),
        Case::new(
            "group 1, mixed spans",
            4,
            64,
            &[dense, window(16, 40), window(0, 1), window(8, 1000)],
            197,
        ),
        Case::new(
            "group 3",
            9,
            64,
            &[dense, window(16, 100), window(64, 64)],
            233,
        ),
        Case::new("group 4, wide heads", 4, 128, &[window(4, 33)], 130),
        Case::new("group 7", 7, 16, &[window(32, 33)], 65),
        Case::new("group 8", 8, 32, &[dense], 64),
        Case::new("many KV heads", 16, 8, &[window(8, 50); 16], 150),
        Case::new(
            "beyond a tile of keys",
            2,
            16,
            &[window(64, 600), dense],
            1300,
        ),
        Case::new("large scores", 2, 64, &[dense, window(8, 70)], 150).with_scores_to(80.0),
        Case::new(
            "dominant key in the sink",
            2,
            64,
            &[dense, window(8, 30)],
            200,
        )
        .with_dominant_key(3),
        Case::new("dominant key between", 2, 64, &[dense, window(8, 30)], 200)
            .with_dominant_key(60),
    ]
}

const TOLERANCE: Tolerance = Tolerance::new(2e-5, 2e-5);

#[test]
fn attention_is_its_twin() {
    let mut worst = 0.0f64;
    for case in cases() {
        let expected =
            attention_prefill(case.twin_shape(), &case.q, &case.k, &case.v, &case.masks, 0);
        let (mut o, lse) = case.attend(&case.masks);
        worst = worst.max(compare(&o, &expected.o, TOLERANCE).assert(case.name));
        worst = worst.max(compare(&lse, &expected.lse, TOLERANCE).assert(case.name));
        o[0] += 1e-3;
        assert!(!compare(&o, &expected.o, TOLERANCE).passed());
    }
    println!("attention: largest error {worst:.2e}"); // measured 5e-6, in scores of 80
}

#[test]
fn a_window_wider_or_narrower_by_one_is_another_result() {
    let case = Case::new("neighbors", 2, 64, &[window(16, 40)], 197);
    let expected = attention_prefill(case.twin_shape(), &case.q, &case.k, &case.v, &case.masks, 0);
    for other in [
        window(16, 39),
        window(16, 41),
        window(15, 40),
        window(17, 40),
        HeadMask::DENSE,
    ] {
        assert!(!compare(&case.attend(&[other]).0, &expected.o, TOLERANCE).passed());
    }
}

#[test]
fn gradients_are_their_twins() {
    let mut worst = 0.0f64;
    for case in cases() {
        let expected = backward_twin(
            case.twin_shape(),
            &case.q,
            &case.k,
            &case.v,
            &case.d_o,
            &case.masks,
        );
        let actual = case.influence(MaskGrid::default(), None);
        for (actual, expected) in [
            (&actual.d_q, &expected.d_q),
            (&actual.d_k, &expected.d_k),
            (&actual.d_v, &expected.d_v),
        ] {
            let allowed = Tolerance::of_largest(2e-5, expected);
            let error = compare(actual, expected, allowed).assert(case.name);
            worst = worst.max(if allowed.abs > 0.0 {
                error / allowed.abs * 2e-5
            } else {
                0.0
            });
        }
    }
    println!("attention_backward: largest error {worst:.2e} of the largest gradient");
}

fn curves_of(twin: &TwinInfluence, estimator: Estimator) -> &[f64] {
    match estimator {
        Estimator::PerEntry => &twin.per_entry,
        Estimator::JointAbs => &twin.joint_abs,
        Estimator::JointSigned => &twin.joint_signed,
        Estimator::JointPositive => &twin.joint_positive,
        Estimator::JointSquare => &twin.joint_square,
    }
}

/// Largest error of any curve relative to the curve's largest value, which must stay below `allowed`.
fn compare_curves(name: &str, actual: &LayerInfluence, twin: &TwinInfluence, allowed: f64) -> f64 {
    let mut worst = 0.0f64;
    for estimator in Estimator::ALL {
        let expected = curves_of(twin, estimator);
        let tolerance = Tolerance::of_largest(allowed, expected);
        // Where nothing is hidden every cost is zero to rounding.
        let tolerance = Tolerance::new(tolerance.abs.max(1e-9), 0.0);
        let error = compare(&actual.curves[estimator.index()], expected, tolerance)
            .assert(&format!("{name}, {estimator}"));
        worst = worst.max(error / tolerance.abs * allowed);
    }
    worst
}

#[test]
fn curves_and_maps_are_their_twins() {
    let mut worst = 0.0f64;
    // The twin is cubic in length.
    for case in cases()
        .iter()
        .filter(|case| case.q.len() < 1000 * case.shape.q_dim())
    {
        for grid in [
            MaskGrid::new(8, 8).unwrap(),
            MaskGrid::default(),
            MaskGrid::new(0, 3).unwrap(),
            MaskGrid::new(128, 64).unwrap(),
        ] {
            let (actual, twin) = (
                case.influence(grid, Some(16)).influence,
                case.influence_twin(grid),
            );
            worst = worst.max(compare_curves(case.name, &actual, &twin, 2e-4));
            let (abs, signed) = twin.blocks(case.shape.heads, 16);
            for (actual, expected) in [(&actual.abs, &abs), (&actual.signed, &signed)] {
                compare(actual, expected, Tolerance::of_largest(2e-4, &abs)).assert(case.name);
            }
        }
    }
    println!("influence: largest error {worst:.2e} of a curve's largest value");
}

/// Rows whose softmax is one far key but for e^-25: every window that hides the key has a large cost, which
/// 1 - m or 1 - A in f32 would turn into noise.
#[test]
fn a_dominant_far_key_costs_what_it_should() {
    let grid = MaskGrid::new(8, 8).unwrap();
    let case = Case::new("dominant", 2, 64, &[HeadMask::DENSE], 300).with_dominant_key(20);
    let (actual, twin) = (
        case.influence(grid, None).influence,
        case.influence_twin(grid),
    );
    let error = compare_curves("dominant", &actual, &twin, 1e-5);
    println!("influence with a dominant far key: largest error {error:.2e} of the largest value");
    let expected = curves_of(&twin, Estimator::JointAbs);
    assert!(expected[10] > 100.0, "the rows matter: {}", expected[10]);

    let spoiled: Vec<f64> = expected.iter().map(|cost| cost * 1.001).collect();
    let allowed = Tolerance::of_largest(1e-5, expected);
    assert!(!compare(&spoiled, expected, allowed).passed());
}

#[test]
fn joint_costs_and_gradients_are_the_same_without_per_entry_costs() {
    let case = Case::new("joint", 6, 32, &[window(16, 64), HeadMask::DENSE], 300);
    let both = case.influence(MaskGrid::default(), None);
    let joint = case.influence_of(MaskGrid::default(), false, None);
    assert_eq!(
        (&both.d_q, &both.d_k, &both.d_v),
        (&joint.d_q, &joint.d_k, &joint.d_v)
    );
    for estimator in Estimator::ALL {
        let curve = &joint.influence.curves[estimator.index()];
        if estimator == Estimator::PerEntry {
            assert!(curve.is_empty());
        } else {
            assert_eq!(curve, &both.influence.curves[estimator.index()]);
        }
    }
    // Maps are of single entries.
    let maps = case.influence_of(MaskGrid::default(), false, Some(64));
    assert_eq!(maps.influence.curves, both.influence.curves);
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let case = Case::new("threads", 6, 32, &[window(16, 64), HeadMask::DENSE], 500);
    let on = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        pool.install(|| {
            let gradients = case.influence(MaskGrid::default(), Some(64));
            (
                gradients.d_q,
                gradients.d_k,
                gradients.d_v,
                gradients.influence,
                case.attend(&case.masks),
            )
        })
    };
    assert_eq!(on(1), on(3));
}

#[test]
fn nan_in_scores_shows() {
    let mut case = Case::new("nan", 2, 16, &[HeadMask::DENSE], 70);
    case.k[16 * 5] = f32::NAN;
    let (o, _) = case.attend(&case.masks);
    let row = |t: usize| &o[t * case.shape.q_dim()..][..case.shape.q_dim()];
    assert!(row(4).iter().all(|value| value.is_finite()));
    assert!(row(5).iter().all(|value| value.is_nan()));
    assert!(row(69).iter().all(|value| value.is_nan()));
}
