//! The launcher of what is made of logits: greedy tokens, which move a batch on without the host, and likelihoods.

use cudarc::driver::CudaFunction;

use crate::extent::check_len;
use crate::launch::{self, Arg, Grid};
use crate::source::{ElementType, Kernel, KernelConfig};
use crate::{Buffer, CudaError, Gpu, Result};

/// A batch that writes on: everything that changes from token to token, on the device.
#[derive(Debug)]
pub struct GreedyState {
    /// Tokens in each request's cache once the one in `ids` is fed, which counts; 0: idle.
    pub lens: Buffer<u32>,
    /// The token to feed next.
    pub ids: Buffer<u32>,
    /// Tokens written so far.
    pub written: Buffer<u32>,
    /// Tokens to write at most.
    pub limits: Buffer<u32>,
    /// `[batch, most]`: the tokens written.
    pub tokens: Buffer<u32>,
    /// Tokens that end a text, padded with numbers that are no tokens.
    pub stops: Buffer<u32>,
}

/// Kernels on rows of f32 logits.
#[derive(Debug)]
pub struct Argmax {
    step: CudaFunction,
    score: CudaFunction,
}

impl Argmax {
    /// Compiles the kernels.
    ///
    /// # Errors
    /// Those of compiling.
    pub fn new(gpu: &Gpu) -> Result<Self> {
        let config = KernelConfig::of_rows(ElementType::Bf16);
        let module = gpu.module(Kernel::Argmax, config)?;
        Ok(Self {
            step: launch::function(&module, "argmax_step", 0)?,
            score: launch::function(&module, "argmax_score", 0)?,
        })
    }

    /// Chooses each request's next token from `logits` (`[batch, vocab]`), writes it down and moves the request on: a stop token or the
    /// last token allowed makes it idle.
    ///
    /// # Errors
    /// [`CudaError::Length`] and the driver's.
    pub fn step(&self, gpu: &Gpu, logits: &Buffer<f32>, state: &mut GreedyState) -> Result<()> {
        let batch = state.lens.len();
        let (vocab, most) = (
            logits.len().checked_div(batch).unwrap_or(0),
            state.tokens.len().checked_div(batch).unwrap_or(0),
        );
        if vocab == 0 || most == 0 {
            return Err(CudaError::Shape {
                what: "batch, vocabulary or room for tokens",
                expected: "at least 1",
                got: 0,
            });
        }
        check_len("logits", batch * vocab, logits.len())?;
        check_len("ids", batch, state.ids.len())?;
        check_len("written", batch, state.written.len())?;
        check_len("limits", batch, state.limits.len())?;
        check_len("tokens", batch * most, state.tokens.len())?;
        let count = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
        let stream = gpu.stream();
        let stop_count = count(state.stops.len());
        launch::launch(
            stream,
            &self.step,
            "launching argmax_step",
            rows(batch),
            &[
                Arg::read(stream, logits),
                Arg::write(stream, &mut state.lens),
                Arg::write(stream, &mut state.ids),
                Arg::write(stream, &mut state.written),
                Arg::read(stream, &state.limits),
                Arg::write(stream, &mut state.tokens),
                Arg::read(stream, &state.stops),
                Arg::U32(stop_count),
                Arg::U32(count(vocab)),
                Arg::U32(count(most)),
            ],
        )
    }

    /// Natural log-likelihoods of `targets` under rows of `logits`, and whether (1) or not (0) each is its row's argmax. Targets are below
    /// the vocabulary's size.
    ///
    /// # Errors
    /// [`CudaError::Length`] and the driver's.
    pub fn score(
        &self,
        gpu: &Gpu,
        logits: &Buffer<f32>,
        targets: &Buffer<u32>,
        log_likelihoods: &mut Buffer<f32>,
        greedy: &mut Buffer<u32>,
    ) -> Result<()> {
        let count = targets.len();
        let vocab = logits.len().checked_div(count).unwrap_or(0);
        check_len("logits", count * vocab, logits.len())?;
        check_len("log-likelihoods", count, log_likelihoods.len())?;
        check_len("greedy", count, greedy.len())?;
        let stream = gpu.stream();
        launch::launch(
            stream,
            &self.score,
            "launching argmax_score",
            rows(count),
            &[
                Arg::read(stream, logits),
                Arg::read(stream, targets),
                Arg::write(stream, log_likelihoods),
                Arg::write(stream, greedy),
                Arg::U32(u32::try_from(vocab).unwrap_or(u32::MAX)),
            ],
        )
    }
}

fn rows(count: usize) -> Grid {
    Grid {
        blocks: (u32::try_from(count).unwrap_or(u32::MAX), 1),
        threads: 512,
        shared_bytes: 0,
    }
}
