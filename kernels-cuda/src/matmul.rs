//! Products of 16-bit matrices by cuBLASLt: f32 sums, 16-bit or f32 results, added to what is there or with a bias.
//!
//! Descriptions and the algorithm that cuBLASLt's heuristic names are kept for every shape. It deliberately multiplies row-major
//! matrices only in the two ways that a linear layer needs.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use cudarc::driver::{DeviceRepr, ValidAsZeroBits};

use crate::extent::check_len;
use crate::launch::{Blas, BlasPlan};
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

    /// `y = x W^T + bias`, or with `add` `y += x W^T`: x `[rows, inputs]`, y `[rows, outputs]`. A bias goes with a 16-bit y that is not
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
            if add || O::VALUE == ValueType::F32 {
                return Err(CudaError::Shape {
                    what: "the output of a product with a bias",
                    expected: "a fresh one of 16-bit values",
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
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        let plan = match plans.entry(product) {
            std::collections::hash_map::Entry::Occupied(known) => known.into_mut(),
            std::collections::hash_map::Entry::Vacant(fresh) => {
                fresh.insert(self.blas.plan(product)?)
            }
        };
        self.blas.run(gpu.stream(), plan, operands, d, add)
    }
}
