//! What can be wrong with CUDA: on a machine, in a source, in a call. It deliberately holds no type of cudarc, so that
//! callers depend on this crate alone.

/// A [`std::result::Result`] with this crate's [`CudaError`].
pub type Result<T> = std::result::Result<T, CudaError>;

/// Why something could not be done on a CUDA device.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CudaError {
    /// The driver's library is not on this machine.
    #[error("no CUDA driver: {library} was not found")]
    NoDriver {
        /// The library that was looked for.
        library: &'static str,
    },
    /// The driver is there, but no device.
    #[error("the CUDA driver sees no device {ordinal}: {count} present")]
    NoDevice {
        /// The device asked for, counted from 0.
        ordinal: usize,
        /// How many there are.
        count: usize,
    },
    /// The driver is too old for the way in which it is called.
    #[error("the CUDA driver is too old: found {}.{}, need {}.{}", found.0, found.1, needed.0, needed.1)]
    OldDriver {
        /// CUDA version that the driver supports, major and minor.
        found: (u32, u32),
        /// Version needed.
        needed: (u32, u32),
    },
    /// The device has not the instructions that a kernel uses.
    #[error("{name} has compute capability {}.{}, {what} needs {}.{}", found.0, found.1, needed.0, needed.1)]
    Capability {
        /// The device.
        name: String,
        /// What was asked for.
        what: &'static str,
        /// The device's capability.
        found: (u32, u32),
        /// The capability needed, exactly in the major number.
        needed: (u32, u32),
    },
    /// NVRTC, the run-time compiler, is not on this machine.
    #[error("no CUDA compiler: {library} was not found")]
    NoCompiler {
        /// The library that was looked for.
        library: &'static str,
    },
    /// cuBLASLt, which multiplies matrices, is not on this machine.
    #[error("no cuBLAS: {library} was not found")]
    NoBlas {
        /// The library that was looked for.
        library: &'static str,
    },
    /// A library is there, but of an older CUDA than calls were written for.
    #[error("{library} is too old: found {}.{}, need {}", found.0, found.1, needed)]
    OldLibrary {
        /// The library.
        library: &'static str,
        /// Its version, major and minor.
        found: (u32, u32),
        /// Major version needed.
        needed: u32,
    },
    /// cuBLASLt refused.
    #[error("cuBLAS failed while {doing}: {message}")]
    Blas {
        /// What was being done.
        doing: &'static str,
        /// The library's name for it.
        message: String,
    },
    /// NVRTC refused a source: a defect of this crate.
    #[error("kernel {kernel} does not compile for {arch}: {log}")]
    Compile {
        /// Stem of the kernel.
        kernel: &'static str,
        /// Architecture that was compiled for.
        arch: String,
        /// What the compiler said.
        log: String,
    },
    /// Device memory is exhausted.
    #[error("out of device memory while {doing}")]
    OutOfMemory {
        /// What was being done.
        doing: &'static str,
    },
    /// Any other error that the driver reports.
    #[error("CUDA failed while {doing}: {message}")]
    Driver {
        /// What was being done.
        doing: &'static str,
        /// The driver's name and sentence for it.
        message: String,
    },
    /// An argument's size is not what the shape says.
    #[error("{what} has {got} elements, expected {expected}")]
    Length {
        /// Which argument.
        what: &'static str,
        /// Elements expected.
        expected: usize,
        /// Elements found.
        got: usize,
    },
    /// A shape that no kernel serves.
    #[error("{what} is {got}, expected {expected}")]
    Shape {
        /// Which dimension.
        what: &'static str,
        /// What is served.
        expected: &'static str,
        /// What was asked for.
        got: usize,
    },
}

impl CudaError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::NoDriver { .. } => "use --device cpu, or install the NVIDIA driver",
            Self::NoDevice { .. } => {
                "use --device cpu, or check nvidia-smi and CUDA_VISIBLE_DEVICES"
            }
            Self::OldDriver { .. } => "use --device cpu, or update the NVIDIA driver",
            Self::Capability { .. } => "use --device cpu, or a Hopper GPU (H100, H200)",
            Self::NoCompiler { .. } => {
                "use --device cpu, or install NVRTC 13 (part of the CUDA toolkit; from PyPI: nvidia-cuda-nvrtc, its folder in LD_LIBRARY_PATH)"
            }
            Self::NoBlas { .. } => {
                "use --device cpu, or install cuBLAS 13 (part of the CUDA toolkit; from PyPI: nvidia-cublas, its folder in LD_LIBRARY_PATH)"
            }
            Self::OldLibrary { .. } => {
                "use --device cpu, or install NVRTC and cuBLAS of CUDA 13 (from PyPI: nvidia-cuda-nvrtc and nvidia-cublas, their folder first in LD_LIBRARY_PATH)"
            }
            Self::Blas { .. } => "use --device cpu, and report this with the model's shape",
            Self::Compile { .. } => "use --device cpu, and report this: it is a defect",
            Self::OutOfMemory { .. } => {
                "use --device cpu, a shorter context, or a device with more free memory"
            }
            Self::Driver { .. } => "use --device cpu; the kernel log (dmesg) may say more",
            Self::Length { .. } | Self::Shape { .. } => {
                "use --device cpu for shapes without a kernel"
            }
        }
    }
}
