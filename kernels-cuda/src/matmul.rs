//! Products of 16-bit matrices by cuBLASLt: f32 sums, 16-bit or f32 results, added to what is there or with a bias.
//!
//! 16-bit results are rounded once. cuBLASLt does so where rows of weights and outputs are whole units of 16 bytes and partial sums are kept in f32;
//! for other sizes it was seen to round products before it adds a bias or another part: there the product is f32, and a kernel of ours adds the
//! bias and rounds.
//!
//! Descriptions and the algorithm that cuBLASLt's heuristic names are kept for every shape. It deliberately multiplies row-major
//! matrices only in the two ways that a linear layer needs.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use cudarc::driver::{DeviceRepr, ValidAsZeroBits};

use crate::extent::check_len;
use crate::launch::{self, Arg, Blas, BlasPlan};
use crate::rows::{as_u32, block_a_row, rows_of};
use crate::source::{Kernel, KernelConfig};
use crate::{Buffer, CudaError, Element, ElementType, Gpu, Result};

/// A type that values on the device have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ValueType {
    /// Single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
}

/// A number as products read and write it.
pub trait Value: DeviceRepr + ValidAsZeroBits + Copy + 'static {
    /// Which one.
    const VALUE: ValueType;
}

impl Value for f32 {
    const VALUE: ValueType = ValueType::F32;
}

impl<T: Element> Value for T {
    const VALUE: ValueType = match T::TYPE {
        ElementType::F16 => ValueType::F16,
        ElementType::Bf16 => ValueType::Bf16,
    };
}

/// A linear layer's sizes: its weight is `[outputs, inputs]`, row-major, and `rows` rows go through it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MatmulShape {
    /// Rows of the activations.
    pub rows: usize,
    /// Columns of the weight.
    pub inputs: usize,
    /// Rows of the weight.
    pub outputs: usize,
}

/// A product as cuBLASLt has it, column-major: d `[m, n]` = a b, where a is stored `[k, m]` if `transposed`, else `[m, k]`, and b `[k, n]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Product {
    pub(crate) m: u64,
    pub(crate) n: u64,
    pub(crate) k: u64,
    pub(crate) transposed: bool,
    pub(crate) bias: bool,
    pub(crate) input: ValueType,
    pub(crate) output: ValueType,
}

impl Product {
    /// Whether cuBLASLt rounds every element once: where the result is f32, and where its kernels for tensor cores serve, which take whole units
    /// of 16 bytes.
    const fn rounds_once(&self) -> bool {
        matches!(self.output, ValueType::F32)
            || (self.m.is_multiple_of(8) && self.k.is_multiple_of(8))
    }
}

/// cuBLASLt with one workspace, and what it has chosen so far.
pub struct Matmul {
    blas: Blas,
    plans: Mutex<HashMap<Product, BlasPlan>>,
}

impl fmt::Debug for Matmul {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Matmul").finish_non_exhaustive()
    }
}

impl Matmul {
    /// Opens cuBLASLt and allocates its workspace.
    ///
    /// # Errors
    /// [`CudaError::NoBlas`], [`CudaError::Blas`], [`CudaError::OutOfMemory`].
    pub fn new(gpu: &Gpu) -> Result<Self> {
        Ok(Self {
            blas: Blas::new(gpu.stream())?,
            plans: Mutex::default(),
        })
    }

    /// `y = x W^T + bias`, or with `add` `y += x W^T`: x `[rows, inputs]`, y `[rows, outputs]`. A bias goes with a y of the weight's type that is not
    /// added to.
    ///
    /// # Errors
    /// [`CudaError::Length`], [`CudaError::Shape`], [`CudaError::Blas`].
    pub fn forward<T: Element, O: Value>(
        &self,
        gpu: &Gpu,
        shape: MatmulShape,
        x: &Buffer<T>,
        weight: &Buffer<T>,
        bias: Option<&Buffer<T>>,
        y: &mut Buffer<O>,
        add: bool,
    ) -> Result<()> {
        check_len("x", shape.rows * shape.inputs, x.len())?;
        check_len("the weight", shape.outputs * shape.inputs, weight.len())?;
        check_len("y", shape.rows * shape.outputs, y.len())?;
        if let Some(bias) = bias {
            check_len("the bias", shape.outputs, bias.len())?;
            if add || O::VALUE != T::VALUE {
                return Err(CudaError::Shape {
                    what: "the output of a product with a bias",
                    expected: "a fresh one of the weight's type",
                    got: size_of::<O>(),
                });
            }
        }
        let product = Product {
            m: shape.outputs as u64,
            n: shape.rows as u64,
            k: shape.inputs as u64,
            transposed: true,
            bias: bias.is_some(),
            input: T::VALUE,
            output: O::VALUE,
        };
        self.run(gpu, product, (weight, x, bias), y, add)
    }

    /// `d_x = d_y W`, or with `add` `d_x += d_y W`: `d_y` `[rows, outputs]`, `d_x` `[rows, inputs]`.
    ///
    /// # Errors
    /// [`CudaError::Length`], [`CudaError::Blas`].
    pub fn backward<T: Element, O: Value>(
        &self,
        gpu: &Gpu,
        shape: MatmulShape,
        d_y: &Buffer<T>,
        weight: &Buffer<T>,
        d_x: &mut Buffer<O>,
        add: bool,
    ) -> Result<()> {
        check_len("d_y", shape.rows * shape.outputs, d_y.len())?;
        check_len("the weight", shape.outputs * shape.inputs, weight.len())?;
        check_len("d_x", shape.rows * shape.inputs, d_x.len())?;
        let product = Product {
            m: shape.inputs as u64,
            n: shape.rows as u64,
            k: shape.outputs as u64,
            transposed: false,
            bias: false,
            input: T::VALUE,
            output: O::VALUE,
        };
        self.run(gpu, product, (weight, d_y, None), d_x, add)
    }

    fn run<T: Element, O: Value>(
        &self,
        gpu: &Gpu,
        product: Product,
        operands: (&Buffer<T>, &Buffer<T>, Option<&Buffer<T>>),
        d: &mut Buffer<O>,
        add: bool,
    ) -> Result<()> {
        if !product.rounds_once() {
            return self.run_in_full(gpu, product, operands, d, add);
        }
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        let plan = match plans.entry(product) {
            std::collections::hash_map::Entry::Occupied(known) => known.into_mut(),
            std::collections::hash_map::Entry::Vacant(fresh) => {
                fresh.insert(self.blas.plan(product)?)
            }
        };
        self.blas.run(gpu.stream(), plan, operands, d, add)
    }

    /// The same by way of f32.
    fn run_in_full<T: Element, O: Value>(
        &self,
        gpu: &Gpu,
        product: Product,
        (a, b, bias): (&Buffer<T>, &Buffer<T>, Option<&Buffer<T>>),
        d: &mut Buffer<O>,
        add: bool,
    ) -> Result<()> {
        if add || O::VALUE != T::VALUE {
            return Err(CudaError::Shape {
                what: "the output of a product of odd sizes",
                expected: "a fresh one of the weight's type, or f32",
                got: size_of::<O>(),
            });
        }
        let in_full = Product {
            bias: false,
            output: ValueType::F32,
            ..product
        };
        let mut full = gpu.buffer::<f32>(d.len())?;
        self.run(gpu, in_full, (a, b, None), &mut full, false)?;
        let module = gpu.module(Kernel::Embedding, KernelConfig::of_rows(T::TYPE))?;
        let stream = gpu.stream();
        let dim = usize::try_from(product.m).unwrap_or(usize::MAX);
        launch::launch(
            stream,
            &launch::function(&module, "narrow_biased", 0)?,
            "launching narrow_biased",
            block_a_row(rows_of("the product", full.len(), dim)?, 128),
            &[
                Arg::read(stream, &full),
                bias.map_or_else(Arg::null, |bias| Arg::read(stream, bias)),
                Arg::write(stream, d),
                Arg::U32(as_u32("columns", dim)?),
            ],
        )
    }
}
