//! What a user can do about an error: hints stand beside messages, not in them.

use crate::bundle::BundleError;
use crate::calibrate::CalibrationError;
use crate::files::FileError;

/// An error that carries its own hint; for what commands find out themselves.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Told {
    message: String,
    hint: String,
}

impl Told {
    pub(crate) fn new(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            hint: hint.into(),
        }
    }
}

/// The first hint that any cause of `error` has.
pub(crate) fn hint_of(error: &anyhow::Error) -> Option<String> {
    // As a context it is no link of the chain of its own: only the error as a whole can be asked for it.
    if let Some(told) = error.downcast_ref::<Told>() {
        return Some(told.hint.clone());
    }
    error.chain().find_map(|cause| {
        if let Some(told) = cause.downcast_ref::<Told>() {
            return Some(told.hint.clone());
        }
        if let Some(error) = cause.downcast_ref::<FileError>() {
            return error.hint();
        }
        if let Some(error) = cause.downcast_ref::<moa_model::ModelError>() {
            return error.hint();
        }
        if let Some(error) = cause.downcast_ref::<CalibrationError>() {
            return error.hint();
        }
        if let Some(error) = cause.downcast_ref::<moa_lm::LmError>() {
            return error.hint().map(ToOwned::to_owned);
        }
        if let Some(BundleError::Format { .. } | BundleError::Tokenizer(_)) =
            cause.downcast_ref::<BundleError>()
        {
            return Some("fetch or build the bundle again".into());
        }
        if let Some(error) = cause.downcast_ref::<moa_cuda::CudaError>() {
            return Some(error.hint().to_owned());
        }
        None
    })
}
