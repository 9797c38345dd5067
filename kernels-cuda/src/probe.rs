//! Is there a CUDA device here, and which? Asked of the driver, without a context: nothing is allocated.

use crate::Result;
use crate::launch;

/// A CUDA device that kernels can run on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceInfo {
    /// The device's name as the driver gives it.
    pub name: String,
    /// Compute capability, major and minor.
    pub compute_capability: (u32, u32),
    /// CUDA version that the driver supports, major and minor.
    pub driver_version: (u32, u32),
    /// Device memory in all.
    pub memory_bytes: u64,
    /// Multiprocessors.
    pub multiprocessors: u32,
}

impl DeviceInfo {
    /// What NVRTC is asked to compile for. The accelerated variant ("a") has the instructions of exactly one
    /// generation.
    pub fn arch(&self) -> String {
        let (major, minor) = self.compute_capability;
        let accelerated = if major >= 9 { "a" } else { "" };
        format!("sm_{major}{minor}{accelerated}")
    }
}

/// The first CUDA device, or why there is none.
///
/// # Errors
/// [`CudaError::NoDriver`](crate::CudaError::NoDriver), [`CudaError::OldDriver`](crate::CudaError::OldDriver),
/// [`CudaError::NoDevice`](crate::CudaError::NoDevice), [`CudaError::Driver`](crate::CudaError::Driver).
pub fn probe() -> Result<DeviceInfo> {
    launch::device_info(0)
}
