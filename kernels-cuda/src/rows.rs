//! Launchers of kernels that work row by row: norm, rotation, activation, rows by number, casts.
//!
//! Residual streams, norms' weights and sums are f32; what products and attention read is 16-bit. It deliberately chooses nothing: callers
//! give every buffer.

use std::marker::PhantomData;

use cudarc::driver::CudaFunction;

use crate::extent::check_len;
use crate::launch::{self, Arg, Grid};
use crate::source::{Kernel, KernelConfig};
use crate::{Buffer, CudaError, Element, Gpu, Result};

/// Which way a rotation turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// As in the forward pass.
    Forward,
    /// The transposed rotation, for gradients.
    Backward,
}

/// Row kernels for the 16-bit type `T`.
#[derive(Debug)]
pub struct Rows<T> {
    rms_norm: CudaFunction,
    rms_norm_backward: CudaFunction,
    swiglu: CudaFunction,
    swiglu_backward: CudaFunction,
    rope: CudaFunction,
    gather_half: CudaFunction,
    gather_full: CudaFunction,
    gather_widen: CudaFunction,
    scatter: CudaFunction,
    narrow: CudaFunction,
    widen: CudaFunction,
    element: PhantomData<T>,
}

/// Rows of `dim` values in a buffer of `len`.
pub(crate) fn rows_of(what: &'static str, len: usize, dim: usize) -> Result<u32> {
    let rows = len.checked_div(dim).unwrap_or(0);
    check_len(what, rows * dim, len)?;
    u32::try_from(rows)
        .ok()
        .filter(|rows| (1..1 << 31).contains(rows))
        .ok_or(CudaError::Shape {
            what: "rows",
            expected: "1 to 2^31 - 1",
            got: rows,
        })
}

pub(crate) fn as_u32(what: &'static str, value: usize) -> Result<u32> {
    u32::try_from(value).map_err(|_too_large| CudaError::Shape {
        what,
        expected: "less than 2^32",
        got: value,
    })
}

/// Blocks of 256 threads with eight values each.
fn eight_each(count: usize) -> Result<Grid> {
    Ok(Grid {
        blocks: (as_u32("values", count.div_ceil(2048))?.max(1), 1),
        threads: 256,
        shared_bytes: 0,
    })
}

pub(crate) const fn block_a_row(rows: u32, threads: u32) -> Grid {
    Grid {
        blocks: (rows, 1),
        threads,
        shared_bytes: 0,
    }
}

impl<T: Element> Rows<T> {
    /// Compiles the kernels.
    ///
    /// # Errors
    /// [`CudaError::Capability`] and those of compiling.
    pub fn new(gpu: &Gpu) -> Result<Self> {
        let of = |kernel: Kernel, name: &str| {
            let module = gpu.module(kernel, KernelConfig::of_rows(T::TYPE))?;
            launch::function(&module, name, 0)
        };
        Ok(Self {
            rms_norm: of(Kernel::RmsNorm, "rms_norm")?,
            rms_norm_backward: of(Kernel::RmsNorm, "rms_norm_backward")?,
            swiglu: of(Kernel::Swiglu, "swiglu")?,
            swiglu_backward: of(Kernel::Swiglu, "swiglu_backward")?,
            rope: of(Kernel::Rope, "rope")?,
            gather_half: of(Kernel::Embedding, "gather_half")?,
            gather_full: of(Kernel::Embedding, "gather_full")?,
            gather_widen: of(Kernel::Embedding, "gather_widen")?,
            scatter: of(Kernel::Embedding, "scatter")?,
            narrow: of(Kernel::Embedding, "narrow_values")?,
            widen: of(Kernel::Embedding, "widen_values")?,
            element: PhantomData,
        })
    }

    /// `y = x / sqrt(mean(x^2) + eps) * weight`: x, y `[rows, dim]`, weight `[dim]`.
    ///
    /// # Errors
    /// [`CudaError::Length`], [`CudaError::Shape`] and the driver's, as of everything here.
    pub fn rms_norm(
        &self,
        gpu: &Gpu,
        x: &Buffer<f32>,
        weight: &Buffer<f32>,
        eps: f32,
        y: &mut Buffer<T>,
    ) -> Result<()> {
        let dim = weight.len();
        let rows = rows_of("x", x.len(), dim)?;
        check_len("y", x.len(), y.len())?;
        let stream = gpu.stream();
        launch::launch(
            stream,
            &self.rms_norm,
            "launching rms_norm",
            block_a_row(rows, 256),
            &[
                Arg::read(stream, x),
                Arg::read(stream, weight),
                Arg::write(stream, y),
                Arg::U32(as_u32("dim", dim)?),
                Arg::F32(eps),
            ],
        )
    }

    /// dL/dx of [`rms_norm`](Self::rms_norm) from dL/dy, written to `d_x` or with `add` added to it.
    ///
    /// # Errors
    /// See [`rms_norm`](Self::rms_norm).
    pub fn rms_norm_backward(
        &self,
        gpu: &Gpu,
        x: &Buffer<f32>,
        weight: &Buffer<f32>,
        d_y: &Buffer<f32>,
        eps: f32,
        d_x: &mut Buffer<f32>,
        add: bool,
    ) -> Result<()> {
        let dim = weight.len();
        let rows = rows_of("x", x.len(), dim)?;
        check_len("d_y", x.len(), d_y.len())?;
        check_len("d_x", x.len(), d_x.len())?;
        let stream = gpu.stream();
        launch::launch(
            stream,
            &self.rms_norm_backward,
            "launching rms_norm_backward",
            block_a_row(rows, 256),
            &[
                Arg::read(stream, x),
                Arg::read(stream, weight),
                Arg::read(stream, d_y),
                Arg::write(stream, d_x),
                Arg::U32(as_u32("dim", dim)?),
                Arg::F32(eps),
                Arg::U32(u32::from(add)),
            ],
        )
    }

    /// `y = silu(gate) * up`.
    ///
    /// # Errors
    /// See [`rms_norm`](Self::rms_norm).
    pub fn swiglu(
        &self,
        gpu: &Gpu,
        gate: &Buffer<T>,
        up: &Buffer<T>,
        y: &mut Buffer<T>,
    ) -> Result<()> {
        check_len("up", gate.len(), up.len())?;
        check_len("y", gate.len(), y.len())?;
        let stream = gpu.stream();
        launch::launch(
            stream,
            &self.swiglu,
            "launching swiglu",
            eight_each(gate.len())?,
            &[
                Arg::read(stream, gate),
                Arg::read(stream, up),
                Arg::write(stream, y),
                Arg::U64(gate.len() as u64),
            ],
        )
    }

    /// dL/dgate and dL/dup, in the buffers of `gate` and `up`.
    ///
    /// # Errors
    /// See [`rms_norm`](Self::rms_norm).
    pub fn swiglu_backward(
        &self,
        gpu: &Gpu,
        gate: &mut Buffer<T>,
        up: &mut Buffer<T>,
        d_y: &Buffer<T>,
    ) -> Result<()> {
        let count = gate.len();
        check_len("up", count, up.len())?;
        check_len("d_y", count, d_y.len())?;
        let stream = gpu.stream();
        launch::launch(
            stream,
            &self.swiglu_backward,
            "launching swiglu_backward",
            eight_each(count)?,
            &[
                Arg::write(stream, gate),
                Arg::write(stream, up),
                Arg::read(stream, d_y),
                Arg::U64(count as u64),
            ],
        )
    }

    /// Rotates `x` `[rows, heads, head_dim]` in place by the angles of `[rows, head_dim / 2]`; `head_dim` is a multiple of 16.
    ///
    /// # Errors
    /// See [`rms_norm`](Self::rms_norm).
    pub fn rope(
        &self,
        gpu: &Gpu,
        x: &mut Buffer<T>,
        heads: usize,
        head_dim: usize,
        (cosines, sines): (&Buffer<f32>, &Buffer<f32>),
        turn: Turn,
    ) -> Result<()> {
        if head_dim == 0 || !head_dim.is_multiple_of(16) {
            return Err(CudaError::Shape {
                what: "head_dim",
                expected: "a multiple of 16",
                got: head_dim,
            });
        }
        let rows = rows_of("x", x.len(), heads * head_dim)? as usize;
        check_len("the cosines", rows * head_dim / 2, cosines.len())?;
        check_len("the sines", rows * head_dim / 2, sines.len())?;
        let pairs = x.len() / 2;
        let stream = gpu.stream();
        launch::launch(
            stream,
            &self.rope,
            "launching rope",
            eight_each(pairs)?,
            &[
                Arg::write(stream, x),
                Arg::read(stream, cosines),
                Arg::read(stream, sines),
                Arg::U64(pairs as u64),
                Arg::U32(as_u32("heads", heads)?),
                Arg::U32(as_u32("head_dim", head_dim / 2)?),
                Arg::F32(if turn == Turn::Forward { 1.0 } else { -1.0 }),
            ],
        )
    }

    /// The rows `ids` of a 16-bit `table` `[_, dim]`; an id outside the table gives NaN.
    ///
    /// # Errors
    /// See [`rms_norm`](Self::rms_norm).
    pub fn gather_half(
        &self,
        gpu: &Gpu,
        table: &Buffer<T>,
        dim: usize,
        ids: &Buffer<u32>,
        y: &mut Buffer<T>,
    ) -> Result<()> {
        gather(gpu, &self.gather_half, table, dim, ids, y)
    }

    /// The rows `ids` of an f32 `table` `[_, dim]`; an id outside the table gives NaN.
    ///
    /// # Errors
    /// See [`rms_norm`](Self::rms_norm).
    pub fn gather_full(
        &self,
        gpu: &Gpu,
        table: &Buffer<f32>,
        dim: usize,
        ids: &Buffer<u32>,
        y: &mut Buffer<f32>,
    ) -> Result<()> {
        gather(gpu, &self.gather_full, table, dim, ids, y)
    }

    /// The rows `ids` of a 16-bit `table` `[_, dim]` as f32: the embedding; an id outside the table gives NaN.
    ///
    /// # Errors
    /// See [`rms_norm`](Self::rms_norm).
    pub fn gather_widen(
        &self,
        gpu: &Gpu,
        table: &Buffer<T>,
        dim: usize,
        ids: &Buffer<u32>,
        y: &mut Buffer<f32>,
    ) -> Result<()> {
        gather(gpu, &self.gather_widen, table, dim, ids, y)
    }

    /// Writes the rows of `x` to the rows `ids`, all different, of `table` `[_, dim]`.
    ///
    /// # Errors
    /// See [`rms_norm`](Self::rms_norm).
    pub fn scatter(
        &self,
        gpu: &Gpu,
        x: &Buffer<f32>,
        dim: usize,
        ids: &Buffer<u32>,
        table: &mut Buffer<f32>,
    ) -> Result<()> {
        gather_or_scatter(gpu, &self.scatter, (x, x.len()), dim, ids, table, false)
    }

    /// f32 to 16 bits, rounded to nearest even.
    ///
    /// # Errors
    /// See [`rms_norm`](Self::rms_norm).
    pub fn narrow(&self, gpu: &Gpu, x: &Buffer<f32>, y: &mut Buffer<T>) -> Result<()> {
        cast(gpu, &self.narrow, x, y)
    }

    /// 16 bits to f32, exactly.
    ///
    /// # Errors
    /// See [`rms_norm`](Self::rms_norm).
    pub fn widen(&self, gpu: &Gpu, x: &Buffer<T>, y: &mut Buffer<f32>) -> Result<()> {
        cast(gpu, &self.widen, x, y)
    }
}

fn gather<X, Y>(
    gpu: &Gpu,
    function: &CudaFunction,
    table: &Buffer<X>,
    dim: usize,
    ids: &Buffer<u32>,
    y: &mut Buffer<Y>,
) -> Result<()> {
    let len = y.len();
    gather_or_scatter(gpu, function, (table, len), dim, ids, y, true)
}

/// `listed` values belong to the rows that `ids` lists.
fn gather_or_scatter<X, Y>(
    gpu: &Gpu,
    function: &CudaFunction,
    (from, listed): (&Buffer<X>, usize),
    dim: usize,
    ids: &Buffer<u32>,
    to: &mut Buffer<Y>,
    gathers: bool,
) -> Result<()> {
    check_len("the listed rows", ids.len() * dim, listed)?;
    let rows = rows_of(
        "the table",
        if gathers { from.len() } else { to.len() },
        dim,
    )?;
    let stream = gpu.stream();
    launch::launch(
        stream,
        function,
        "launching embedding",
        block_a_row(rows_of("the listed rows", listed, dim)?, 128),
        &[
            Arg::read(stream, from),
            Arg::read(stream, ids),
            Arg::write(stream, to),
            Arg::U32(as_u32("dim", dim)?),
            Arg::U32(rows),
        ],
    )
}

fn cast<X, Y>(gpu: &Gpu, function: &CudaFunction, x: &Buffer<X>, y: &mut Buffer<Y>) -> Result<()> {
    check_len("y", x.len(), y.len())?;
    let stream = gpu.stream();
    launch::launch(
        stream,
        function,
        "launching a cast",
        eight_each(x.len())?,
        &[
            Arg::read(stream, x),
            Arg::write(stream, y),
            Arg::U64(x.len() as u64),
        ],
    )
}
