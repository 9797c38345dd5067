//! Operations without attention's: buffers, products, rows, losses.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use moa_kernels::{
    Buffer, CudaError, Element, ElementType, Gpu, Kernel, Losses, Matmul, MatmulShape, Result,
    Rows, Turn as RowTurn,
};
use moa_lm::{
    Attended, AttentionBackward, AttentionGradients, AttentionShape, Device, Keep, KvCache, Linear,
    LmError, Projected, RopeTable, Turn,
};
use moa_mask::HeadMask;

use crate::stages::{Recorder, Stage};

/// What gradients are multiplied by where 16 bits have a small range: a power of two, so that nothing is rounded. The gradient of a mean over rows
/// becomes at most a few hundred; f16 reaches 65504, and 6e-8 below.
const F16_GRADIENT_SCALE: f64 = 4096.0;

/// Numbers on the device, kept in full or as kernels read them.
#[derive(Debug)]
pub enum Values<T> {
    /// f32.
    Full(Buffer<f32>),
    /// 16 bits.
    Working(Buffer<T>),
}

/// A GPU with kernels for one 16-bit type.
pub struct Cuda<T> {
    pub(crate) gpu: Arc<Gpu>,
    rows: Rows<T>,
    losses: Losses<T>,
    matmul: Matmul,
    recorder: Recorder,
}

impl<T> fmt::Debug for Cuda<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cuda")
            .field("gpu", &self.gpu)
            .finish_non_exhaustive()
    }
}

/// A 16-bit view of values: their own, or a copy that was made for it.
enum Narrow<'a, T> {
    Own(&'a Buffer<T>),
    Copy(Buffer<T>),
}

impl<T> Narrow<'_, T> {
    fn get(&self) -> &Buffer<T> {
        match self {
            Self::Own(buffer) => buffer,
            Self::Copy(buffer) => buffer,
        }
    }
}

/// f32 is where 16 bits were to come, or the other way round: a defect of the model's code.
fn wrong_kind(expected: &'static str, len: usize) -> CudaError {
    CudaError::Shape {
        what: "the kind of a buffer",
        expected,
        got: len,
    }
}

impl<T: Element> Values<T> {
    pub(crate) fn full(&self) -> Result<&Buffer<f32>> {
        match self {
            Self::Full(buffer) => Ok(buffer),
            Self::Working(buffer) => Err(wrong_kind("f32", buffer.len())),
        }
    }

    pub(crate) fn working(&self) -> Result<&Buffer<T>> {
        match self {
            Self::Working(buffer) => Ok(buffer),
            Self::Full(buffer) => Err(wrong_kind("16 bits", buffer.len())),
        }
    }

    pub(crate) fn into_full(self) -> Result<Buffer<f32>> {
        match self {
            Self::Full(buffer) => Ok(buffer),
            Self::Working(buffer) => Err(wrong_kind("f32", buffer.len())),
        }
    }

    pub(crate) fn working_mut(&mut self) -> Result<&mut Buffer<T>> {
        match self {
            Self::Working(buffer) => Ok(buffer),
            Self::Full(buffer) => Err(wrong_kind("16 bits", buffer.len())),
        }
    }
}

impl<T: Element + fmt::Debug + Send + Sync> Cuda<T> {
    /// Opens the first device. `cache` is a folder for compiled kernels, which need not exist.
    ///
    /// # Errors
    /// Whatever is missing, too old or too full: [`CudaError::NoDriver`], [`CudaError::OldDriver`], [`CudaError::NoDevice`],
    /// [`CudaError::Capability`], [`CudaError::NoCompiler`], [`CudaError::NoBlas`], [`CudaError::OutOfMemory`] and the driver's others.
    pub fn open(cache: Option<&Path>) -> Result<Self> {
        Self::on(Arc::new(Gpu::open(0, cache)?))
    }

    /// A device on a GPU that is open already: whatever is computed there shares its stream, its memory and its compiled kernels.
    ///
    /// # Errors
    /// See [`open`](Self::open).
    pub fn on(gpu: Arc<Gpu>) -> Result<Self> {
        gpu.check_capability(Kernel::AttentionPrefill)?;
        Ok(Self {
            rows: Rows::new(&gpu)?,
            losses: Losses::new(&gpu)?,
            matmul: Matmul::new(&gpu)?,
            gpu,
            recorder: Recorder::default(),
        })
    }

    /// The GPU, for whoever computes on it too.
    pub fn gpu(&self) -> &Arc<Gpu> {
        &self.gpu
    }

    /// The most bytes of device memory that were in use at once since the last call of this function, weights included.
    ///
    /// # Errors
    /// The driver's.
    pub fn peak_bytes(&self) -> Result<u64> {
        self.gpu.peak_bytes()
    }

    /// From now on measures how long each kind of operation takes.
    pub fn start_stages(&self) {
        self.recorder.start();
    }

    /// Milliseconds of each kind of operation since [`start_stages`](Self::start_stages); ends the measurement.
    ///
    /// # Errors
    /// The driver's.
    pub fn stop_stages(&self) -> Result<Vec<(Stage, f64)>> {
        self.recorder.stop(&self.gpu)
    }

    /// Does `work`; its error becomes the model's.
    pub(crate) fn run<R>(
        &self,
        stage: Stage,
        work: impl FnOnce() -> Result<R>,
    ) -> moa_lm::Result<R> {
        let result = self.recorder.around(&self.gpu, stage, work);
        result.map_err(|error| LmError::Device {
            device: self.label(),
            source: Box::new(error),
        })
    }

    /// 16 bits of values that may be kept in full.
    fn narrow<'a>(&self, values: &'a Values<T>) -> Result<Narrow<'a, T>> {
        match values {
            Values::Working(buffer) => Ok(Narrow::Own(buffer)),
            Values::Full(buffer) => {
                let mut copy = self.gpu.buffer(buffer.len())?;
                self.rows.narrow(&self.gpu, buffer, &mut copy)?;
                Ok(Narrow::Copy(copy))
            }
        }
    }

    /// Losses of `rows` rows with their gradient; `work` launches the kernel.
    fn loss(
        &self,
        logits: Values<T>,
        rows: usize,
        work: impl FnOnce(&Buffer<f32>, &mut Buffer<f64>, &mut Buffer<T>) -> Result<()>,
    ) -> moa_lm::Result<(f64, Values<T>)> {
        let (losses, gradient) = self.run(Stage::Losses, || {
            let logits = logits.into_full()?;
            let mut losses = self.gpu.buffer(rows)?;
            let mut gradient = self.gpu.buffer(logits.len())?;
            work(&logits, &mut losses, &mut gradient)?;
            Ok((losses, gradient))
        })?;
        let losses = self.run(Stage::Copies, || self.gpu.download(&losses))?;
        Ok((losses.iter().sum(), Values::Working(gradient)))
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "scalars of kernels are f32"
)]
fn to_f32(x: f64) -> f32 {
    x as f32
}

impl<T: Element + fmt::Debug + Send + Sync> Device for Cuda<T> {
    type Buffer = Values<T>;

    fn label(&self) -> String {
        self.gpu.info().name.clone()
    }

    fn upload(&self, values: Vec<f32>) -> moa_lm::Result<Values<T>> {
        self.run(Stage::Copies, || {
            Ok(Values::Full(self.gpu.upload(&values)?))
        })
    }

    fn upload_weight(&self, values: Vec<f32>) -> moa_lm::Result<Values<T>> {
        self.run(Stage::Copies, || {
            let full = self.gpu.upload(&values)?;
            let mut narrow = self.gpu.buffer(full.len())?;
            self.rows.narrow(&self.gpu, &full, &mut narrow)?;
            Ok(Values::Working(narrow))
        })
    }

    /// What is not finite is refused here, since nothing after it would notice.
    fn download(&self, buffer: &Values<T>) -> moa_lm::Result<Vec<f32>> {
        let values = self.run(Stage::Copies, || match buffer {
            Values::Full(buffer) => self.gpu.download(buffer),
            Values::Working(buffer) => {
                let mut wide = self.gpu.buffer(buffer.len())?;
                self.rows.widen(&self.gpu, buffer, &mut wide)?;
                self.gpu.download(&wide)
            }
        })?;
        if values.iter().all(|value| value.is_finite()) {
            Ok(values)
        } else {
            Err(LmError::NotFinite {
                device: self.label(),
            })
        }
    }

    fn len(&self, buffer: &Values<T>) -> usize {
        match buffer {
            Values::Full(buffer) => buffer.len(),
            Values::Working(buffer) => buffer.len(),
        }
    }

    fn copy(&self, buffer: &Values<T>) -> moa_lm::Result<Values<T>> {
        self.run(Stage::Copies, || {
            Ok(match buffer {
                Values::Full(buffer) => Values::Full(self.gpu.copy(buffer)?),
                Values::Working(buffer) => Values::Working(self.gpu.copy(buffer)?),
            })
        })
    }

    fn zeros(&self, len: usize, keep: Keep) -> moa_lm::Result<Values<T>> {
        self.run(Stage::Copies, || {
            Ok(match keep {
                Keep::Full => Values::Full(self.gpu.zeros(len)?),
                Keep::Working => Values::Working(self.gpu.zeros(len)?),
            })
        })
    }

    fn value_bytes(&self, keep: Keep) -> u64 {
        match keep {
            Keep::Full => size_of::<f32>() as u64,
            Keep::Working => size_of::<T>() as u64,
        }
    }

    fn gradient_scale(&self) -> f64 {
        match T::TYPE {
            ElementType::F16 => F16_GRADIENT_SCALE,
            ElementType::Bf16 => 1.0,
        }
    }

    fn recomputes_attention(&self) -> bool {
        true
    }

    fn embed(&self, table: &Values<T>, dim: usize, ids: &[u32]) -> moa_lm::Result<Values<T>> {
        self.run(Stage::Rows, || {
            let ids = self.gpu.upload(ids)?;
            let mut rows = self.gpu.buffer(ids.len() * dim)?;
            self.rows
                .gather_widen(&self.gpu, table.working()?, dim, &ids, &mut rows)?;
            Ok(Values::Full(rows))
        })
    }

    fn gather_rows(
        &self,
        table: &Values<T>,
        dim: usize,
        rows: &[u32],
    ) -> moa_lm::Result<Values<T>> {
        self.run(Stage::Rows, || {
            let ids = self.gpu.upload(rows)?;
            let len = rows.len() * dim;
            Ok(match table {
                Values::Full(table) => {
                    let mut rows = self.gpu.buffer(len)?;
                    self.rows
                        .gather_full(&self.gpu, table, dim, &ids, &mut rows)?;
                    Values::Full(rows)
                }
                Values::Working(table) => {
                    let mut rows = self.gpu.buffer(len)?;
                    self.rows
                        .gather_half(&self.gpu, table, dim, &ids, &mut rows)?;
                    Values::Working(rows)
                }
            })
        })
    }

    fn scatter_rows(
        &self,
        values: &Values<T>,
        dim: usize,
        rows: &[u32],
        into: &mut Values<T>,
    ) -> moa_lm::Result<()> {
        self.run(Stage::Rows, || {
            let ids = self.gpu.upload(rows)?;
            match into {
                Values::Full(table) => {
                    self.rows
                        .scatter(&self.gpu, values.full()?, dim, &ids, table)
                }
                Values::Working(table) => Err(wrong_kind("f32", table.len())),
            }
        })
    }

    fn matmul(
        &self,
        x: &Values<T>,
        linear: &Linear<Values<T>>,
        addend: Option<Values<T>>,
        keep: Keep,
    ) -> moa_lm::Result<Values<T>> {
        self.run(Stage::Products, || {
            let (gpu, weight, x) = (&self.gpu, linear.weight.working()?, self.narrow(x)?);
            let bias = linear.bias.as_ref().map(Values::working).transpose()?;
            let shape = shape_of(linear, x.get().len() / linear.inputs);
            let len = shape.rows * shape.outputs;
            Ok(match (addend, keep) {
                (Some(addend), _) => {
                    let mut y = addend.into_full()?;
                    self.matmul
                        .forward(gpu, shape, x.get(), weight, bias, &mut y, true)?;
                    Values::Full(y)
                }
                (None, Keep::Full) => {
                    let mut y = gpu.buffer::<f32>(len)?;
                    self.matmul
                        .forward(gpu, shape, x.get(), weight, bias, &mut y, false)?;
                    Values::Full(y)
                }
                (None, Keep::Working) => {
                    let mut y = gpu.buffer::<T>(len)?;
                    self.matmul
                        .forward(gpu, shape, x.get(), weight, bias, &mut y, false)?;
                    Values::Working(y)
                }
            })
        })
    }

    fn matmul_backward(
        &self,
        d_y: &Values<T>,
        linear: &Linear<Values<T>>,
        addend: Option<Values<T>>,
        keep: Keep,
    ) -> moa_lm::Result<Values<T>> {
        self.run(Stage::Products, || {
            let (gpu, weight, d_y) = (&self.gpu, linear.weight.working()?, self.narrow(d_y)?);
            let shape = shape_of(linear, d_y.get().len() / linear.outputs);
            let len = shape.rows * shape.inputs;
            Ok(match (addend, keep) {
                (Some(addend), _) => {
                    let mut d_x = addend.into_full()?;
                    self.matmul
                        .backward(gpu, shape, d_y.get(), weight, &mut d_x, true)?;
                    Values::Full(d_x)
                }
                (None, Keep::Full) => {
                    let mut d_x = gpu.buffer::<f32>(len)?;
                    self.matmul
                        .backward(gpu, shape, d_y.get(), weight, &mut d_x, false)?;
                    Values::Full(d_x)
                }
                (None, Keep::Working) => {
                    let mut d_x = gpu.buffer::<T>(len)?;
                    self.matmul
                        .backward(gpu, shape, d_y.get(), weight, &mut d_x, false)?;
                    Values::Working(d_x)
                }
            })
        })
    }

    fn rms_norm(&self, x: &Values<T>, weight: &Values<T>, eps: f64) -> moa_lm::Result<Values<T>> {
        self.run(Stage::Rows, || {
            let x = x.full()?;
            let mut y = self.gpu.buffer(x.len())?;
            self.rows
                .rms_norm(&self.gpu, x, weight.full()?, to_f32(eps), &mut y)?;
            Ok(Values::Working(y))
        })
    }

    fn rms_norm_backward(
        &self,
        x: &Values<T>,
        weight: &Values<T>,
        d_y: &Values<T>,
        eps: f64,
        addend: Option<Values<T>>,
    ) -> moa_lm::Result<Values<T>> {
        self.run(Stage::Rows, || {
            let (x, add) = (x.full()?, addend.is_some());
            let mut d_x = match addend {
                Some(addend) => addend.into_full()?,
                None => self.gpu.buffer(x.len())?,
            };
            let (weight, d_y) = (weight.full()?, d_y.full()?);
            self.rows
                .rms_norm_backward(&self.gpu, x, weight, d_y, to_f32(eps), &mut d_x, add)?;
            Ok(Values::Full(d_x))
        })
    }

    fn rope(
        &self,
        x: &mut Values<T>,
        heads: usize,
        table: &RopeTable<Values<T>>,
        turn: Turn,
    ) -> moa_lm::Result<()> {
        self.run(Stage::Rows, || {
            let turn = match turn {
                Turn::Forward => RowTurn::Forward,
                Turn::Backward => RowTurn::Backward,
            };
            let angles = (table.cos.full()?, table.sin.full()?);
            let x = x.working_mut()?;
            self.rows
                .rope(&self.gpu, x, heads, table.head_dim, angles, turn)
        })
    }

    fn swiglu(&self, gate: &Values<T>, up: &Values<T>) -> moa_lm::Result<Values<T>> {
        self.run(Stage::Rows, || {
            let gate = gate.working()?;
            let mut y = self.gpu.buffer(gate.len())?;
            self.rows.swiglu(&self.gpu, gate, up.working()?, &mut y)?;
            Ok(Values::Working(y))
        })
    }

    fn swiglu_backward(
        &self,
        mut gate: Values<T>,
        mut up: Values<T>,
        d_y: &Values<T>,
    ) -> moa_lm::Result<(Values<T>, Values<T>)> {
        self.run(Stage::Rows, || {
            let (on_gate, on_up) = (gate.working_mut()?, up.working_mut()?);
            self.rows
                .swiglu_backward(&self.gpu, on_gate, on_up, d_y.working()?)
        })?;
        Ok((gate, up))
    }

    fn attention(
        &self,
        shape: AttentionShape,
        projected: &Projected<'_, Values<T>>,
        masks: &[HeadMask],
        cache: Option<&KvCache<Values<T>>>,
    ) -> moa_lm::Result<Attended<Values<T>>> {
        self.attend(shape, projected, masks, cache)
    }

    fn commit(
        &self,
        shape: AttentionShape,
        projected: &Projected<'_, Values<T>>,
        cache: &mut KvCache<Values<T>>,
    ) -> moa_lm::Result<()> {
        self.keep_keys(shape, projected, cache)
    }

    fn attention_backward(
        &self,
        inputs: &AttentionBackward<'_, Values<T>>,
    ) -> moa_lm::Result<AttentionGradients<Values<T>>> {
        self.attend_backward(inputs)
    }

    fn cross_entropy(
        &self,
        logits: Values<T>,
        targets: &[u32],
        scale: f64,
    ) -> moa_lm::Result<(f64, Values<T>)> {
        self.loss(logits, targets.len(), |logits, losses, gradient| {
            let targets = self.gpu.upload(targets)?;
            self.losses
                .cross_entropy(&self.gpu, logits, &targets, to_f32(scale), losses, gradient)
        })
    }

    fn kl_divergence(
        &self,
        teacher: &Values<T>,
        logits: Values<T>,
        rows: usize,
        scale: f64,
    ) -> moa_lm::Result<(f64, Values<T>)> {
        self.loss(logits, rows, |logits, losses, gradient| {
            self.losses.kl_divergence(
                &self.gpu,
                teacher.full()?,
                logits,
                to_f32(scale),
                losses,
                gradient,
            )
        })
    }
}

fn shape_of<B>(linear: &Linear<B>, rows: usize) -> MatmulShape {
    MatmulShape {
        rows,
        inputs: linear.inputs,
        outputs: linear.outputs,
    }
}
