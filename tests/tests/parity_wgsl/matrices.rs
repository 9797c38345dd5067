//! Weight pieces of every type: products and embeddings.

use bytemuck::bytes_of;
use moa_mask::abi::{PieceParams, ProjectParams};
use moa_reference::compare::{Tolerance, compare};
use moa_shaders::{
    Dialect, HeadShape, Kernel, MATMUL_TILE, MATVEC_ROWS, MatmulThreads, Products, VectorType,
    WeightType,
};
use moa_tests::attention::{packed, unpacked};
use moa_tests::cases::{self, MatmulCase};
use moa_tests::gpu::{Data, POISON, floats, products, test_gpu, test_gpu_in};
use moa_tests::random::Random;

use crate::file::File;
use crate::{bits, state};

/// Of sums of up to 1,536 products of magnitude 1, in f32.
const MATMUL: Tolerance = Tolerance::new(5e-5, 2e-5);
/// The same where groups of 32 are summed in f16.
const MATMUL_F16: Tolerance = Tolerance::new(5e-2, 5e-3);
const EMBEDDING: Tolerance = Tolerance::new(1e-7, 1e-6);
/// Attention's shape, which these kernels do not use.
const SHAPE: HeadShape = HeadShape {
    heads: 1,
    kv_heads: 1,
    head_dim: 64,
};

/// A random piece in `weight`'s type, and what its bytes mean.
pub(crate) fn piece(
    random: &mut Random,
    weight: WeightType,
    rows: u32,
    cols: u32,
) -> (Vec<u8>, Vec<f64>) {
    let values = random.spiked((rows * cols) as usize, 0.5);
    let (dtype, stored) = match weight {
        WeightType::Q4 => (moa_format::DType::Q4, moa_reference::weights::Stored::Q4),
        WeightType::Q8 => (moa_format::DType::Q8, moa_reference::weights::Stored::Q8),
        WeightType::F16 => (moa_format::DType::F16, moa_reference::weights::Stored::F16),
        WeightType::F32 => (moa_format::DType::F32, moa_reference::weights::Stored::F32),
    };
    let bytes = moa_format::pack(dtype, &values, cols).unwrap().bytes;
    let weights = moa_reference::weights::dequantize(stored, &bytes, values.len());
    (bytes, weights)
}

/// Values and scales of a piece, as they are bound.
fn parts(weight: WeightType, bytes: &[u8], rows: u32, cols: u32) -> (Vec<u8>, Vec<u8>) {
    let dtype = match weight {
        WeightType::Q4 => moa_format::DType::Q4,
        WeightType::Q8 => moa_format::DType::Q8,
        WeightType::F16 => moa_format::DType::F16,
        WeightType::F32 => moa_format::DType::F32,
    };
    let layout = moa_format::PieceLayout::of(dtype, rows, cols).unwrap();
    let end = usize::try_from(layout.values_bytes).unwrap();
    let scales = usize::try_from(layout.scales_offset).unwrap();
    (bytes[..end].to_vec(), bytes[scales..].to_vec())
}

/// Inputs that lie at no tie when they are rounded to 127th parts of their group's largest.
pub(crate) fn away_from_ties(x: &mut [f32]) {
    for group in x.chunks_mut(32) {
        let step = group.iter().fold(0.0f32, |max, value| max.max(value.abs())) / 127.0;
        for value in group {
            if ((*value / step).fract().abs() - 0.5).abs() < 0.01 {
                *value += 0.02 * step;
            }
        }
    }
}

/// A way to multiply: tokens in tiles, or one by one.
#[derive(Debug, Clone, Copy)]
enum Way {
    Matmul(MatmulThreads),
    Matvec,
}

impl Way {
    /// Those of a dialect.
    fn list(dialect: Dialect) -> Vec<Self> {
        let mut list = vec![
            Self::Matmul(MatmulThreads::Wide),
            Self::Matmul(MatmulThreads::Short),
        ];
        if dialect.variant.products == Products::F32 {
            list.extend([Self::Matmul(MatmulThreads::Narrow), Self::Matvec]);
        }
        list
    }
}

/// Whether there is a bias, in which type, and whether the product is added to what is there: each weight type and each way
/// meets each once, and all sizes. What ends a product does not know how it came about, and every combination more is a
/// pipeline of each way that takes seconds to compile.
fn end(weight: usize, way: usize) -> (Option<VectorType>, bool) {
    let bias = VectorType::ALL[(weight / 2 + way / 2) % 2];
    match (weight + way) % 4 {
        0 => (None, false),
        1 => (Some(bias), false),
        2 => (None, true),
        _ => (Some(bias), true),
    }
}

fn check_matmul(
    dialect: Dialect,
    weight: WeightType,
    case: MatmulCase,
    way: Way,
    (kind, add): (Option<VectorType>, bool),
) -> f64 {
    let vector = kind.unwrap_or(VectorType::F32);
    let mut random = Random::new(u64::from(case.rows * case.cols + case.tokens));
    let (bytes, weights) = piece(&mut random, weight, case.rows, case.cols);
    let (values, scales) = parts(weight, &bytes, case.rows, case.cols);
    let mut x = random.spiked((case.tokens * case.cols) as usize, 1.0);
    let products = dialect.variant.products;
    if products == Products::Dp4a {
        away_from_ties(&mut x);
    }
    let tolerance = if products == Products::F16 {
        MATMUL_F16
    } else {
        MATMUL
    };
    let bias = random.spiked(case.whole_rows as usize, 1.0);
    let bias: Vec<f32> = if vector == VectorType::F16 {
        unpacked(&packed(&even(&bias)))
    } else {
        bias
    };
    let before = random.spiked((case.tokens * case.whole_rows) as usize, 1.0);
    let poisoned: Vec<f32> = if add {
        before.clone()
    } else {
        vec![f32::from_bits(POISON); before.len()]
    };

    let own_bias: Vec<f32> = bias[case.row_offset as usize..][..case.rows as usize].to_vec();
    let cols = case.cols as usize;
    let mut product = match products {
        Products::F32 | Products::F16 => moa_reference::matmul::matmul(&x, &weights, cols, None),
        Products::Dp4a => {
            let offsets = offsets(weight, &bytes, &weights);
            moa_reference::matmul::matmul_packed(&x, &weights, &offsets, cols)
        }
    };
    if kind.is_some() {
        for (index, value) in product.iter_mut().enumerate() {
            *value += f64::from(own_bias[index % case.rows as usize]);
        }
    }
    let params = PieceParams {
        rows: case.rows,
        cols: case.cols,
        row_offset: case.row_offset,
        y_stride: case.whole_rows,
    };
    let bias_words = if vector == VectorType::F16 {
        packed(&even(&bias))
    } else {
        bits(&bias)
    };
    let (kernel, grid) = match way {
        Way::Matmul(threads) => (
            Kernel::Matmul {
                weight,
                bias: kind,
                add,
                threads,
            },
            (
                case.rows.div_ceil(MATMUL_TILE),
                case.tokens.div_ceil(threads.tokens()),
            ),
        ),
        Way::Matvec => (
            Kernel::Matvec {
                weight,
                bias: kind,
                add,
            },
            (case.rows.div_ceil(MATVEC_ROWS), case.tokens),
        ),
    };
    let label = format!("{} {case:?}", kernel.label_in(SHAPE, dialect));
    let outputs = test_gpu_in(dialect).run(
        kernel,
        SHAPE,
        grid,
        &[
            ("params", Data::Bytes(bytes_of(&params))),
            ("state", Data::U32(&state(0, case.tokens))),
            ("x", Data::F32(&x)),
            ("values", Data::Bytes(&values)),
            ("y", Data::F32(&poisoned)),
            ("scales", Data::Bytes(&scales)),
            ("vector", Data::U32(&bias_words)),
        ],
    );
    let y = &outputs["y"];
    let mut own = Vec::new();
    let mut expected = Vec::new();
    for token in 0..case.tokens as usize {
        for row in 0..case.whole_rows as usize {
            let at = token * case.whole_rows as usize + row;
            let piece_row = row.wrapping_sub(case.row_offset as usize);
            if piece_row < case.rows as usize {
                own.push(f32::from_bits(y[at]));
                let residual = if add { f64::from(before[at]) } else { 0.0 };
                expected.push(product[token * case.rows as usize + piece_row] + residual);
            } else {
                assert_eq!(
                    y[at],
                    poisoned[at].to_bits(),
                    "{label}: rows of other pieces stay"
                );
            }
        }
    }
    let error = compare(&own, &expected, tolerance).assert(&label);
    let last = expected.len() - 1;
    let change = if products == Products::F16 { 0.5 } else { 1e-3 };
    expected[last] += change + change * expected[last].abs();
    assert!(
        !compare(&own, &expected, tolerance).passed(),
        "{label}: one changed value passed"
    );
    assert!(
        !compare(&own, &vec![0.0; own.len()], tolerance).passed(),
        "{label}: zeros passed"
    );
    error
}

/// What the weights would be if what is stored beside the scales stood for zero.
pub(crate) fn offsets(weight: WeightType, bytes: &[u8], weights: &[f64]) -> Vec<f64> {
    if weight != WeightType::Q4 {
        return vec![0.0; weights.len()];
    }
    let mut eights = bytes.to_vec();
    eights[..weights.len() / 2].fill(0x88);
    let stored = moa_reference::weights::Stored::Q4;
    moa_reference::weights::dequantize(stored, &eights, weights.len())
}

/// An even number of values, so that they fill words of two.
fn even(values: &[f32]) -> Vec<f32> {
    let mut values = values.to_vec();
    values.resize(values.len().next_multiple_of(2), 0.0);
    values
}

#[test]
#[cfg_attr(
    skip_wgpu,
    ignore = "no WebGPU device: set MOA_TEST_WGPU=yes and VK_ICD_FILENAMES"
)]
fn matrices_of_every_type_multiply() {
    for (index, weight) in WeightType::ALL.into_iter().enumerate() {
        let mut list = cases::matmul();
        if !weight.has_scales() {
            list.extend(cases::matmul_ragged());
        }
        let mut largest = 0.0f64;
        for (nth, way) in Way::list(Dialect::BASE).into_iter().enumerate() {
            for &case in &list {
                let end = end(index, nth);
                largest = largest.max(check_matmul(Dialect::BASE, weight, case, way, end));
            }
        }
        println!("matmul and matvec, {}: {largest:.2e}", weight.name());
    }
}

#[test]
#[cfg_attr(
    skip_wgpu,
    ignore = "no WebGPU device: set MOA_TEST_WGPU=yes and VK_ICD_FILENAMES"
)]
fn quantized_matrices_multiply_in_f16_and_as_packed_bytes() {
    let dialects = products();
    assert!(dialects.len() > 1, "packed products need no feature");
    for dialect in dialects
        .into_iter()
        .filter(|dialect| dialect.variant.products != Products::F32)
    {
        for (index, weight) in [WeightType::Q4, WeightType::Q8].into_iter().enumerate() {
            let mut largest = 0.0f64;
            for (nth, way) in Way::list(dialect).into_iter().enumerate() {
                for case in cases::matmul() {
                    // The four of them.
                    let end = end(2 * index, nth);
                    largest = largest.max(check_matmul(dialect, weight, case, way, end));
                }
            }
            println!(
                "matmul, {}, {}: {largest:.2e}",
                weight.name(),
                dialect.variant
            );
        }
    }
}

#[test]
#[cfg_attr(
    skip_wgpu,
    ignore = "no WebGPU device: set MOA_TEST_WGPU=yes and VK_ICD_FILENAMES"
)]
fn embeddings_of_every_type_are_gathered() {
    for weight in WeightType::ALL {
        let (rows, cols) = (37, if weight.has_scales() { 96 } else { 100 });
        let mut random = Random::new(11);
        // Pieces of 20 and 17 rows.
        let mut file = File::default();
        let (first, first_scales, mut weights) = file.matrix(&mut random, weight, 20, cols);
        let (second, second_scales, rest) = file.matrix(&mut random, weight, 17, cols);
        weights.extend(rest);
        // Rows 20..57 of the whole: ids below and above belong to other pieces.
        let tokens = [20u32, 56, 19, 57, 40, 39];
        let params = ProjectParams {
            rows,
            cols,
            row_offset: 20,
            piece_rows: 20,
            piece_step: second - first,
            scales_step: first_scales - first,
            last_scales_step: second_scales - second,
            eps: 0.0,
        };
        let words = tokens.len() * cols as usize;
        let outputs = test_gpu().run(
            Kernel::Embedding(weight),
            SHAPE,
            ((cols / 4).div_ceil(64), 6),
            &[
                ("params", Data::Bytes(bytes_of(&params))),
                ("state", Data::U32(&state(0, 6))),
                ("tokens", Data::U32(&tokens)),
                ("values", Data::Bytes(&file.bytes)),
                ("words", Data::Bytes(&file.bytes)),
                ("y", Data::Poison(words)),
            ],
        );
        let mut error = 0.0f64;
        for (token, row) in tokens.iter().zip(outputs["y"].chunks_exact(cols as usize)) {
            if (20..57).contains(token) {
                let expected =
                    moa_reference::embedding::embedding(&[token - 20], &weights, cols as usize);
                error =
                    error.max(compare(&floats(row), &expected, EMBEDDING).assert(weight.name()));
                let wrong = moa_reference::embedding::embedding(
                    &[(token - 20 + 1) % rows],
                    &weights,
                    cols as usize,
                );
                assert!(
                    !compare(&floats(row), &wrong, EMBEDDING).passed(),
                    "the neighboring row passed"
                );
            } else {
                assert!(
                    row.iter().all(|&word| word == POISON),
                    "another piece's token was written"
                );
            }
        }
        println!("embedding, {}: {error:.2e}", weight.name());
    }
}
