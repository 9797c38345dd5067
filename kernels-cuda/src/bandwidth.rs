//! How fast this device reads its memory, measured: the ceiling of memory-bound kernels. For benches.

use crate::launch::{self, Arg, Grid};
use crate::source::{ElementType, Kernel, KernelConfig};
use crate::{Gpu, Result};

/// Gigabytes (10^9 bytes) a second of the best of `repeats` reads of a buffer of 4 GiB.
///
/// # Errors
/// Those of allocating and launching.
pub fn read_gigabytes_per_sec(gpu: &Gpu, repeats: u32) -> Result<f64> {
    const PIECES: u32 = 1 << 28; // of 16 bytes
    let config = KernelConfig {
        head_dim: 64,
        element: ElementType::Bf16,
    };
    let module = gpu.module(Kernel::ReadBandwidth, config)?;
    let function = launch::function(&module, "read_bandwidth", 0)?;
    let data = gpu.zeros::<u32>(PIECES as usize * 4)?;
    let mut sink = gpu.zeros::<u32>(1)?;
    let stream = gpu.stream();
    let mut best = f64::INFINITY;
    for _ in 0..repeats.max(2) {
        let ms = gpu.time_ms(|| {
            launch::launch(
                stream,
                &function,
                "launching read_bandwidth",
                Grid {
                    blocks: (gpu.info().multiprocessors * 4, 1),
                    threads: 512,
                    shared_bytes: 0,
                },
                &[
                    Arg::read(stream, &data),
                    Arg::write(stream, &mut sink),
                    Arg::U32(PIECES),
                ],
            )
        })?;
        best = best.min(f64::from(ms));
    }
    Ok(f64::from(PIECES) * 16.0 / best / 1e6)
}
