//! Codes as the words that kernels exchange: where each lies, and whether words say what a twin says.

use moa_mask::abi::{CODE_PLANES, CODE_TILE, QUANT_GROUP, code_bytes};
use moa_reference::codes::{Codes, GROUP};
use moa_reference::compare::Tolerance;
use moa_shaders::WeightType;
use moa_tests::gpu::POISON;
use moa_tests::random::Random;

/// The types whose kernels take codes.
pub(crate) const TYPES: [WeightType; 2] = [WeightType::Q4, WeightType::Q8];

/// Words of the codes of so many columns.
pub(crate) fn code_words(cols: usize) -> usize {
    usize::try_from(code_bytes(u32::try_from(cols).unwrap()) / 4).unwrap()
}

/// First word of a plane's vector for the group of 32 of a column.
fn vector(plane: usize, column: usize) -> usize {
    let (tile, planes) = (CODE_TILE as usize, CODE_PLANES as usize);
    let group = column / QUANT_GROUP as usize;
    4 * ((group / tile * planes + plane) * tile + group % tile)
}

/// Word and byte of a column's code in the order of weights of a type.
fn place(weight: WeightType, column: usize) -> (usize, usize) {
    let (part, inner) = (column / GROUP % 4, column % GROUP);
    let (plane, word, byte) = match weight {
        WeightType::Q4 => (0, inner % 2, inner / 2),
        _ => (2, inner / 4, inner % 4),
    };
    (
        vector(plane + part / 2, column) + 2 * (part % 2) + word,
        byte,
    )
}

/// The word of step and sum of a column's eight, and that of their squares.
fn scale_place(column: usize) -> (usize, usize) {
    let part = column / GROUP % 4;
    (vector(4, column) + part, vector(5, column) + part)
}

/// The words of codes for weights of a type; what those of the other type would read says something else.
pub(crate) fn encoded(weight: WeightType, codes: &Codes) -> Vec<u32> {
    let cols = codes.codes.len();
    let mut words = vec![POISON; code_words(cols)];
    for column in 0..cols {
        for order in TYPES {
            let (word, byte) = place(order, column);
            let code = if order == weight {
                codes.codes[column]
            } else {
                codes.codes[cols - 1 - column]
            };
            let mut bytes = words[word].to_le_bytes();
            bytes[byte] = code.cast_unsigned();
            words[word] = u32::from_le_bytes(bytes);
        }
        let (scale, squares) = scale_place(column);
        words[scale] = codes.steps[column / GROUP].to_bits();
        words[squares] = codes.squares[column / GROUP].to_bits();
    }
    words
}

/// A token of any codes, steps and sums, whose squares are `normed` ones or NaN.
pub(crate) fn random_codes(random: &mut Random, cols: u32, normed: bool) -> Codes {
    let groups = cols as usize / GROUP;
    let code = |random: &mut Random| i8::try_from(i64::from(random.below(255)) - 127).unwrap();
    let mut codes = Codes {
        codes: (0..cols).map(|_| code(random)).collect(),
        steps: Vec::new(),
        sums: Vec::new(),
        squares: Vec::new(),
    };
    for _ in 0..groups {
        let sum = random.spiked(1, 1.0)[0].to_bits() >> 16;
        let step = [1.0 / 128.0, 1.0 / 64.0, 3.0 / 128.0][random.below(3) as usize];
        let step: f32 = step;
        codes
            .steps
            .push(f32::from_bits((step.to_bits() & 0xffff_0000) | sum));
        codes.sums.push(f32::from_bits(sum << 16));
        codes.squares.push(if normed {
            1.0 + random.unit()
        } else {
            f32::NAN
        });
    }
    codes
}

/// A token and codes that stand for it exactly: sums of nothing, steps that are powers of two.
pub(crate) fn exact_codes(random: &mut Random, cols: u32) -> (Vec<f32>, Codes) {
    let mut codes = random_codes(random, cols, true);
    for group in 0..codes.steps.len() {
        codes.steps[group] = [1.0 / 128.0, 1.0 / 64.0, 1.0 / 32.0][random.below(3) as usize];
        codes.sums[group] = 0.0;
        let own = &mut codes.codes[GROUP * group..][..GROUP];
        for pair in 0..GROUP / 2 {
            // Partners are neighbors in no order.
            own[GROUP - 1 - pair] = -own[pair];
        }
        let squares = own.iter().map(|code| f32::from(*code).powi(2)).sum::<f32>();
        codes.squares[group] = squares * codes.steps[group].powi(2);
    }
    #[expect(clippy::cast_possible_truncation, reason = "exact")]
    let x = codes
        .values()
        .into_iter()
        .map(|value| value as f32)
        .collect();
    (x, codes)
}

/// Whether words are the codes of what the twin says, from a column on: in either order the same codes, every value within
/// half a step, steps of a 127th of each largest and little more, and the sums; and with a norm the sums of squares of what
/// the twin says before it.
pub(crate) fn check_codes(
    label: &str,
    words: &[u32],
    first: usize,
    expected: &[f64],
    squared: Option<&[f64]>,
    tolerance: Tolerance,
) {
    let code = |weight, column| {
        let (word, byte) = place(weight, first + column);
        f64::from(words[word].to_le_bytes()[byte].cast_signed())
    };
    let step = |column| f64::from(f32::from_bits(words[scale_place(first + column).0]));
    let slack = |value: f64| tolerance.abs + tolerance.rel * value.abs();
    let near = |value: f64, column: usize| {
        let [q4, q8] = TYPES.map(|weight| code(weight, column));
        let error = (step(column) * q4 - value).abs();
        q4 == q8 && error <= 0.5001 * step(column) + slack(value)
    };
    for (column, value) in expected.iter().enumerate() {
        assert!(near(*value, column), "{label}: column {column}");
    }
    let wrong = (0..expected.len()).filter(|column| !near(-expected[*column], *column));
    assert!(
        wrong.count() > expected.len() / 4,
        "{label}: the other sign passed"
    );
    for (group, own) in expected.chunks(GROUP).enumerate() {
        let largest = own.iter().fold(0.0f64, |top, value| top.max(value.abs()));
        let steps = 127.0 * step(GROUP * group);
        assert!(
            steps >= largest - slack(largest) && steps <= 1.016 * largest + 127.0 * tolerance.abs,
            "{label}: group {group} has steps of {steps} / 127, its largest is {largest}"
        );
        let (scale, squares) = scale_place(first + GROUP * group);
        let sum = f64::from(f32::from_bits(words[scale] << 16));
        let exact: f64 = own.iter().sum();
        let most = exact.abs() / 256.0 + 8.0 * slack(largest);
        assert!(
            (sum - exact).abs() <= most,
            "{label}: group {group}: {sum} for a sum of {exact}"
        );
        if let Some(all) = squared {
            let exact: f64 = all[GROUP * group..][..GROUP]
                .iter()
                .map(|value| value * value)
                .sum();
            let sum = f64::from(f32::from_bits(words[squares]));
            let most = 16.0 * exact.sqrt() * slack(exact.sqrt()) + 1e-6 * exact;
            assert!(
                (sum - exact).abs() <= most,
                "{label}: group {group}: squares of {sum} for {exact}"
            );
        }
    }
}

/// Whether the words of all columns but those of a range are poison still, and of all if nothing was in flight.
pub(crate) fn others_stay(label: &str, words: &[u32], own: std::ops::Range<usize>, squares: bool) {
    let mut expected = words.to_vec();
    for column in own {
        for weight in TYPES {
            expected[place(weight, column).0] = POISON;
        }
        let (scale, square) = scale_place(column);
        expected[scale] = POISON;
        if squares {
            expected[square] = POISON;
        }
    }
    assert!(
        expected.iter().all(|&word| word == POISON),
        "{label}: codes of others stay"
    );
}

/// Step and sum of a column's group.
pub(crate) fn scale_of(words: &[u32], column: usize) -> [f32; 2] {
    let word = words[scale_place(column).0];
    [f32::from_bits(word), f32::from_bits(word << 16)]
}

/// The words of a column's group that hold its codes.
pub(crate) fn byte_words(words: &[u32], column: usize) -> [u32; 4] {
    let first = column / GROUP * GROUP;
    let [a, b] = TYPES.map(|weight| place(weight, first).0);
    [words[a], words[a + 1], words[b], words[b + 1]]
}
