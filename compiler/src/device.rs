//! Where to compute, chosen once and said aloud; and a model there.

use std::path::PathBuf;
use std::sync::Arc;

use moa_cuda::CudaError;
use moa_cuda_engine::Gpu;
use moa_lm::{Cpu, Lm, WeightSource};

use crate::cli::DeviceChoice;
use crate::interrupt;
use crate::printer::Printer;
use crate::source::Source;

/// A place that was found to work. The GPU is opened once: everything that is computed on it shares one stream and one memory.
#[derive(Debug, Clone)]
pub(crate) enum Place {
    Cpu,
    Cuda(Arc<Gpu>),
}

/// A model with its weights, wherever they lie.
#[derive(Debug)]
pub(crate) enum Model {
    Cpu(Box<Lm<Cpu>>),
    Cuda(Box<Lm<moa_cuda::Gpu>>),
}

/// Does the same with a model on either place.
macro_rules! on {
    ($model:expr, $lm:ident => $what:expr) => {
        match $model {
            $crate::device::Model::Cpu($lm) => $what,
            $crate::device::Model::Cuda($lm) => $what,
        }
    };
}
pub(crate) use on;

/// Refuses a device that is not there or cannot be used. `auto` takes a GPU that can be used, and says what it took.
pub(crate) fn choose(choice: DeviceChoice, printer: &Printer) -> anyhow::Result<Place> {
    match choice {
        DeviceChoice::Cpu => Ok(Place::Cpu),
        DeviceChoice::Cuda => Ok(Place::Cuda(open()?)),
        DeviceChoice::Auto => match open() {
            Ok(gpu) => {
                printer.say(format!(
                    "computing on {} (--device cpu does without)",
                    gpu.info().name
                ));
                Ok(Place::Cuda(gpu))
            }
            Err(CudaError::NoDriver { .. } | CudaError::NoDevice { .. }) => Ok(Place::Cpu),
            Err(error) => {
                printer.say(format!("computing on the CPU: {error}"));
                Ok(Place::Cpu)
            }
        },
    }
}

/// A GPU on which everything that a profile needs was found: kernels, their compiler, cuBLAS.
fn open() -> Result<Arc<Gpu>, CudaError> {
    let device = moa_cuda::Gpu::open(kernel_cache().as_deref())?;
    Ok(device.gpu().clone())
}

/// Where compiled kernels are kept between runs.
fn kernel_cache() -> Option<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let caches = folder("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| folder("HOME").map(|home| PathBuf::from(home).join(".cache")))?;
    Some(caches.join("moa-compile/kernels"))
}

/// Moves weights to a place.
pub(crate) fn load_weights(place: &Place, source: &dyn WeightSource) -> anyhow::Result<Model> {
    let cancel = interrupt::flag();
    Ok(match place {
        Place::Cpu => Model::Cpu(Box::new(Lm::load(Cpu, source, cancel)?)),
        Place::Cuda(gpu) => {
            let device = moa_cuda::Gpu::on(gpu.clone())?;
            Model::Cuda(Box::new(Lm::load(device, source, cancel)?))
        }
    })
}

/// Loads the weights.
pub(crate) fn load(place: &Place, source: &Source, printer: &Printer) -> anyhow::Result<Model> {
    let bar = printer.bar("loading weights", 0);
    let model = load_weights(place, source)?;
    bar.finish_and_clear();
    Ok(model)
}
