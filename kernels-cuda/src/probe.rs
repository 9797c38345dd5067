//! Is there a CUDA driver here? Asked by looking for its library, without loading it.

use std::path::Path;

use crate::{CudaError, Result};

const DRIVER: &str = "libcuda.so.1";
const FOLDERS: &[&str] = &[
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/usr/local/nvidia/lib64",
    "/usr/local/cuda/compat",
    "/usr/lib/wsl/lib",
];

/// A CUDA device that kernels can run on.
#[derive(Debug, Clone)]
pub struct DeviceInfo {
    /// The device's name as the driver gives it.
    pub name: String,
    /// Compute capability, major and minor.
    pub compute_capability: (u32, u32),
}

/// The first CUDA device, or why there is none.
pub fn probe() -> Result<DeviceInfo> {
    let listed = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let found = std::env::split_paths(&listed)
        .chain(FOLDERS.iter().map(|folder| Path::new(folder).to_path_buf()))
        .any(|folder| folder.join(DRIVER).exists());
    if found {
        Err(CudaError::NoEngine)
    } else {
        Err(CudaError::NoDriver { library: DRIVER })
    }
}
