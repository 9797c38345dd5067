//! Matrix products over strided slices: the one file of this crate with unsafe code.
//!
//! It wraps the `gemm` library (candle's own) behind bounds checks, because heads of K, V and Q are strided
//! views that must be multiplied where they lie.

#![expect(
    unsafe_code,
    reason = "gemm takes raw pointers; the extents are checked here"
)]

use gemm::Parallelism;

/// A matrix that lies in a slice: element (i, j) at `i * row_stride + j * col_stride`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Matrix<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> Matrix<'a> {
    /// Rows of `cols` values, `row_stride` apart.
    pub(super) fn new(data: &'a [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        Self {
            data,
            rows,
            cols,
            row_stride,
            col_stride: 1,
        }
    }

    /// The transposed matrix, nothing moved.
    pub(super) fn t(self) -> Self {
        Self {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }
}

/// Where a product goes: rows of `cols` values, `row_stride` apart.
#[derive(Debug)]
pub(super) struct MatrixMut<'a> {
    data: &'a mut [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
}

impl<'a> MatrixMut<'a> {
    pub(super) fn new(data: &'a mut [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        Self {
            data,
            rows,
            cols,
            row_stride,
        }
    }
}

/// What happens to the values that were there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Store {
    /// Overwritten, never read.
    Set,
    /// Added to.
    Add,
}

/// On how many threads a product is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Threads {
    /// The caller's.
    One,
    /// All of the pool's.
    All,
}

/// `dst = scale * a b`, or `dst += scale * a b`.
pub(super) fn gemm(
    dst: MatrixMut<'_>,
    store: Store,
    a: Matrix<'_>,
    b: Matrix<'_>,
    scale: f32,
    threads: Threads,
) {
    assert!(
        a.rows == dst.rows && b.cols == dst.cols && a.cols == b.rows,
        "inner and outer sizes agree"
    );
    if dst.rows == 0 || dst.cols == 0 {
        return;
    }
    let reaches = |rows: usize, cols: usize, row_stride: usize, col_stride: usize| {
        if rows == 0 || cols == 0 {
            0
        } else {
            (rows - 1) * row_stride + (cols - 1) * col_stride + 1
        }
    };
    assert!(
        reaches(dst.rows, dst.cols, dst.row_stride, 1) <= dst.data.len(),
        "the product fits its slice"
    );
    assert!(
        dst.row_stride >= dst.cols || dst.rows == 1,
        "rows of the product do not overlap"
    );
    for m in [a, b] {
        assert!(
            reaches(m.rows, m.cols, m.row_stride, m.col_stride) <= m.data.len(),
            "the factor fits its slice"
        );
    }
    let parallelism = match threads {
        Threads::One => Parallelism::None,
        Threads::All => Parallelism::Rayon(0),
    };
    // SAFETY: every element that is read or written lies inside its slice (checked above), `dst` is borrowed
    // mutably and so aliases neither factor, and its rows do not overlap. Strides are below `isize::MAX`,
    // since they multiply to an index into a slice or multiply with zero.
    unsafe {
        gemm::gemm(
            dst.rows,
            dst.cols,
            a.cols,
            dst.data.as_mut_ptr(),
            1,
            dst.row_stride.cast_signed(),
            store == Store::Add,
            a.data.as_ptr(),
            a.col_stride.cast_signed(),
            a.row_stride.cast_signed(),
            b.data.as_ptr(),
            b.col_stride.cast_signed(),
            b.row_stride.cast_signed(),
            1.0,
            scale,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wave(len: usize, step: f32) -> Vec<f32> {
        (0..len).map(|i| (i as f32 * step).sin()).collect()
    }

    /// Every shape, stride, store and orientation against three loops.
    #[test]
    fn strided_products_are_right_and_touch_nothing_else() {
        for (m, n, k) in [
            (1, 1, 1),
            (1, 7, 5),
            (3, 1, 9),
            (5, 17, 33),
            (64, 40, 64),
            (2, 3, 0),
        ] {
            for pad in [0, 3] {
                for transpose in [false, true] {
                    let a = wave(m * (k + pad) + 1, 0.3);
                    let (b_rows, b_cols) = if transpose { (n, k) } else { (k, n) };
                    let b = wave(b_rows * (b_cols + pad) + 1, 0.7);
                    for store in [Store::Set, Store::Add] {
                        let start = if store == Store::Set { f32::NAN } else { 2.0 };
                        let mut dst = vec![start; m * (n + pad) + 1];
                        let b_view = Matrix::new(&b, b_rows, b_cols, b_cols + pad);
                        gemm(
                            MatrixMut::new(&mut dst, m, n, n + pad),
                            store,
                            Matrix::new(&a, m, k, k + pad),
                            if transpose { b_view.t() } else { b_view },
                            0.5,
                            Threads::One,
                        );
                        for i in 0..m {
                            for j in 0..n + pad {
                                let got = dst[i * (n + pad) + j];
                                if j >= n {
                                    assert!(
                                        got.to_bits() == start.to_bits(),
                                        "padding is untouched"
                                    );
                                    continue;
                                }
                                let mut sum = if store == Store::Set { 0.0 } else { 2.0 };
                                for l in 0..k {
                                    let b_index = if transpose {
                                        j * (k + pad) + l
                                    } else {
                                        l * (n + pad) + j
                                    };
                                    sum += 0.5
                                        * f64::from(a[i * (k + pad) + l])
                                        * f64::from(b[b_index]);
                                }
                                assert!((f64::from(got) - sum).abs() < 1e-5, "{got} {sum}");
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn products_do_not_depend_on_the_number_of_threads() {
        for (m, n, k) in [(512, 576, 1536), (37, 3000, 576), (1, 4000, 576)] {
            let (a, b) = (wave(m * k, 0.3), wave(n * k, 0.7));
            let on = |threads: usize| {
                let pool = rayon::ThreadPoolBuilder::new()
                    .num_threads(threads)
                    .build()
                    .unwrap();
                let mut dst = vec![0.0; m * n];
                pool.install(|| {
                    let product = MatrixMut::new(&mut dst, m, n, n);
                    let (a, b) = (Matrix::new(&a, m, k, k), Matrix::new(&b, n, k, k).t());
                    gemm(product, Store::Set, a, b, 1.0, Threads::All);
                });
                dst
            };
            let one = on(1);
            assert!(one == on(2) && one == on(5), "{m} {n} {k}");
        }
    }

    #[test]
    #[should_panic(expected = "the factor fits its slice")]
    fn short_slices_are_refused() {
        let mut dst = [0.0; 4];
        let product = MatrixMut::new(&mut dst, 2, 2, 2);
        gemm(
            product,
            Store::Set,
            Matrix::new(&[0.0; 3], 2, 2, 2),
            Matrix::new(&[0.0; 4], 2, 2, 2),
            1.0,
            Threads::One,
        );
    }
}
