//! What can be wrong with CUDA on a machine.

/// A [`std::result::Result`] with this crate's [`CudaError`].
pub type Result<T> = std::result::Result<T, CudaError>;

/// Why no CUDA device can be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CudaError {
    /// The driver's library is not on this machine.
    #[error("no CUDA driver: {library} was not found")]
    NoDriver {
        /// The library that was looked for.
        library: &'static str,
    },
    /// There is a driver, but this version of moa has no CUDA engine.
    #[error("a CUDA driver is present, but this version of moa runs on the CPU only")]
    NoEngine,
}

impl CudaError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::NoDriver { .. } => "use --device cpu, or install the NVIDIA driver",
            Self::NoEngine => "use --device cpu",
        }
    }
}
