//! What can go wrong: the model's own errors, and the device's.

use moa_kernels::CudaError;
use moa_lm::LmError;

/// A [`std::result::Result`] with this crate's [`EngineError`].
pub type Result<T> = std::result::Result<T, EngineError>;

/// Why a batch could not be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// Tokens, texts, masks or weights that do not fit.
    #[error(transparent)]
    Model(#[from] LmError),
    /// The device failed; [`CudaError::OutOfMemory`] asks for a smaller batch.
    #[error(transparent)]
    Cuda(#[from] CudaError),
}

impl From<moa_mask::MaskError> for EngineError {
    fn from(error: moa_mask::MaskError) -> Self {
        Self::Model(error.into())
    }
}

impl EngineError {
    /// What the user can do about it, where that is known.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Model(error) => error.hint(),
            Self::Cuda(error) => Some(error.hint()),
        }
    }
}
