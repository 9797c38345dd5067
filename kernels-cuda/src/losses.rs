//! Launchers of losses over rows of logits, with their gradients.

use std::marker::PhantomData;

use cudarc::driver::CudaFunction;

use crate::extent::check_len;
use crate::launch::{self, Arg, Grid};
use crate::source::{Kernel, KernelConfig};
use crate::{Buffer, CudaError, Element, Gpu, Result};

/// Cross entropy and KL divergence, with gradients of the 16-bit type `T`.
#[derive(Debug)]
pub struct Losses<T> {
    cross_entropy: CudaFunction,
    kl_divergence: CudaFunction,
    element: PhantomData<T>,
}

impl<T: Element> Losses<T> {
    /// Compiles the kernels.
    ///
    /// # Errors
    /// [`CudaError::Capability`] and those of compiling.
    pub fn new(gpu: &Gpu) -> Result<Self> {
        let module = gpu.module(Kernel::CrossEntropy, KernelConfig::of_rows(T::TYPE))?;
        Ok(Self {
            cross_entropy: launch::function(&module, "cross_entropy", 0)?,
            kl_divergence: launch::function(&module, "kl_divergence", 0)?,
            element: PhantomData,
        })
    }

    /// `-log softmax(row)[target]` of each row of `logits` `[targets.len(), vocab]` to `losses`, and `scale` times the gradient of their
    /// sum to `gradient`. Targets must be less than the vocabulary.
    ///
    /// # Errors
    /// [`CudaError::Length`] and the driver's.
    pub fn cross_entropy(
        &self,
        gpu: &Gpu,
        logits: &Buffer<f32>,
        targets: &Buffer<u32>,
        scale: f32,
        losses: &mut Buffer<f64>,
        gradient: &mut Buffer<T>,
    ) -> Result<()> {
        check_len("targets", losses.len(), targets.len())?;
        let inputs = [
            Arg::read(gpu.stream(), logits),
            Arg::read(gpu.stream(), targets),
        ];
        self.run(
            gpu,
            &self.cross_entropy,
            inputs,
            logits.len(),
            scale,
            losses,
            gradient,
        )
    }

    /// `KL(softmax(teacher row) || softmax(row))` of each row to `losses`, and `scale` times the gradient of their sum with respect to `logits`
    /// to `gradient`.
    ///
    /// # Errors
    /// [`CudaError::Length`] and the driver's.
    pub fn kl_divergence(
        &self,
        gpu: &Gpu,
        teacher: &Buffer<f32>,
        logits: &Buffer<f32>,
        scale: f32,
        losses: &mut Buffer<f64>,
        gradient: &mut Buffer<T>,
    ) -> Result<()> {
        check_len("the teacher's logits", logits.len(), teacher.len())?;
        let inputs = [
            Arg::read(gpu.stream(), teacher),
            Arg::read(gpu.stream(), logits),
        ];
        self.run(
            gpu,
            &self.kl_divergence,
            inputs,
            logits.len(),
            scale,
            losses,
            gradient,
        )
    }

    fn run(
        &self,
        gpu: &Gpu,
        function: &CudaFunction,
        [first, second]: [Arg<'_>; 2],
        values: usize,
        scale: f32,
        losses: &mut Buffer<f64>,
        gradient: &mut Buffer<T>,
    ) -> Result<()> {
        let rows = losses.len();
        let vocab = values.checked_div(rows).unwrap_or(0);
        check_len("logits", rows * vocab, values)?;
        check_len("the gradient", values, gradient.len())?;
        let size = |value: usize| {
            u32::try_from(value)
                .ok()
                .filter(|value| (1..1 << 31).contains(value))
                .ok_or(CudaError::Shape {
                    what: "rows or vocabulary",
                    expected: "1 to 2^31 - 1",
                    got: value,
                })
        };
        let grid = Grid {
            blocks: (size(rows)?, 1),
            threads: 512,
            shared_bytes: 0,
        };
        let stream = gpu.stream();
        let vocab = Arg::U32(size(vocab)?);
        let (losses, gradient) = (Arg::write(stream, losses), Arg::write(stream, gradient));
        launch::launch(
            stream,
            function,
            "launching cross_entropy",
            grid,
            &[first, second, losses, gradient, vocab, Arg::F32(scale)],
        )
    }
}
