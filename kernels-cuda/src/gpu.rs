//! A device that is open: memory, compiled kernels, time. It deliberately knows no kernel's arguments.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::{
    CudaContext, CudaEvent, CudaModule, CudaSlice, CudaStream, DeviceRepr, ValidAsZeroBits,
};
use sha2::{Digest, Sha256};

use crate::launch;
use crate::source::{ElementType, Kernel, KernelConfig};
use crate::{CudaError, DeviceInfo, Result};

/// Memory on the device.
pub type Buffer<T> = CudaSlice<T>;

/// A 16-bit type that kernels read.
pub trait Element: DeviceRepr + ValidAsZeroBits + Copy + 'static {
    /// Which one.
    const TYPE: ElementType;
}

impl Element for half::f16 {
    const TYPE: ElementType = ElementType::F16;
}

impl Element for half::bf16 {
    const TYPE: ElementType = ElementType::Bf16;
}

/// A point of time on the device, between launches.
#[derive(Debug)]
pub struct Mark(CudaEvent);

impl Mark {
    /// Milliseconds from this mark to a later one. The device must have passed both.
    ///
    /// # Errors
    /// The driver's.
    pub fn ms_to(&self, later: &Self) -> Result<f32> {
        self.0
            .elapsed_ms(&later.0)
            .map_err(|error| launch::error("reading a timer", error))
    }
}

/// An open device with one stream. Everything is ordered on that stream.
pub struct Gpu {
    info: DeviceInfo,
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    cache: Option<PathBuf>,
    modules: Mutex<HashMap<(Kernel, KernelConfig), Arc<CudaModule>>>,
}

impl fmt::Debug for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gpu")
            .field("info", &self.info)
            .field("cache", &self.cache)
            .finish_non_exhaustive()
    }
}

impl Gpu {
    /// Opens device `ordinal`. `cache` is a folder for compiled kernels, kept between runs; it need not exist, and a
    /// folder that cannot be written only costs time.
    ///
    /// # Errors
    /// Those of [`crate::probe`], and the driver's when no context can be made.
    pub fn open(ordinal: usize, cache: Option<&Path>) -> Result<Self> {
        let info = launch::device_info(ordinal)?;
        let context = CudaContext::new(ordinal)
            .map_err(|error| launch::error("opening the device", error))?;
        launch::order_by_stream_alone(&context);
        launch::keep_freed_memory(&context)?;
        let stream = context
            .new_stream()
            .map_err(|error| launch::error("making a stream", error))?;
        Ok(Self {
            info,
            context,
            stream,
            cache: cache.map(Path::to_path_buf),
            modules: Mutex::default(),
        })
    }

    /// What the driver says about the device.
    pub fn info(&self) -> &DeviceInfo {
        &self.info
    }

    /// Free and total device memory in bytes.
    ///
    /// # Errors
    /// The driver's.
    pub fn memory(&self) -> Result<(usize, usize)> {
        self.context
            .mem_get_info()
            .map_err(|error| launch::error("asking for free memory", error))
    }

    /// The most bytes that buffers took at once since the last call of this function.
    ///
    /// # Errors
    /// The driver's.
    pub fn peak_bytes(&self) -> Result<u64> {
        launch::peak_bytes(&self.context)
    }

    /// Waits, and gives memory that no buffer takes back to the system: otherwise it is kept for the next buffers, which may be of
    /// other sizes.
    ///
    /// # Errors
    /// The driver's.
    pub fn trim(&self) -> Result<()> {
        self.synchronize()?;
        launch::trim(&self.context)
    }

    /// Copies values to the device.
    ///
    /// # Errors
    /// [`CudaError::OutOfMemory`] and the driver's others.
    pub fn upload<T: DeviceRepr>(&self, values: &[T]) -> Result<Buffer<T>> {
        self.stream
            .clone_htod(values)
            .map_err(|error| launch::error("copying to the device", error))
    }

    /// Copies values to the device, to where `buffer` begins plus `at`.
    ///
    /// # Errors
    /// [`CudaError::Length`] when they do not fit, and the driver's.
    pub fn write<T: DeviceRepr>(
        &self,
        buffer: &mut Buffer<T>,
        at: usize,
        values: &[T],
    ) -> Result<()> {
        let got = buffer.len();
        let expected = at.saturating_add(values.len());
        let mut view = buffer
            .try_slice_mut(at..expected)
            .ok_or(CudaError::Length {
                what: "the destination",
                expected,
                got,
            })?;
        self.stream
            .memcpy_htod(values, &mut view)
            .map_err(|error| launch::error("copying to the device", error))
    }

    /// A buffer of zeros.
    ///
    /// # Errors
    /// [`CudaError::OutOfMemory`] and the driver's others.
    pub fn zeros<T: DeviceRepr + ValidAsZeroBits>(&self, len: usize) -> Result<Buffer<T>> {
        self.stream
            .alloc_zeros(len)
            .map_err(|error| launch::error("allocating", error))
    }

    /// A buffer that holds whatever was there before, for outputs.
    ///
    /// # Errors
    /// [`CudaError::OutOfMemory`] and the driver's others.
    pub fn buffer<T: DeviceRepr>(&self, len: usize) -> Result<Buffer<T>> {
        launch::allocate(&self.stream, len)
    }

    /// A second buffer with the same values.
    ///
    /// # Errors
    /// [`CudaError::OutOfMemory`] and the driver's others.
    pub fn copy<T: DeviceRepr>(&self, buffer: &Buffer<T>) -> Result<Buffer<T>> {
        self.stream
            .clone_dtod(buffer)
            .map_err(|error| launch::error("copying on the device", error))
    }

    /// Fills `buffer` with `block` again and again; the last one may be cut.
    ///
    /// # Errors
    /// [`CudaError::Length`] for an empty block, and the driver's.
    pub fn repeat<T: DeviceRepr>(&self, block: &Buffer<T>, buffer: &mut Buffer<T>) -> Result<()> {
        let (part, len) = (block.len(), buffer.len());
        if part == 0 {
            return Err(CudaError::Length {
                what: "the block",
                expected: 1,
                got: 0,
            });
        }
        for at in (0..len).step_by(part) {
            let count = part.min(len - at);
            self.stream
                .memcpy_dtod(&block.slice(..count), &mut buffer.slice_mut(at..at + count))
                .map_err(|error| launch::error("copying on the device", error))?;
        }
        Ok(())
    }

    /// Copies a buffer back, after everything that was launched before.
    ///
    /// # Errors
    /// The driver's; errors of earlier launches surface here too.
    pub fn download<T: DeviceRepr>(&self, buffer: &Buffer<T>) -> Result<Vec<T>> {
        self.stream
            .clone_dtoh(buffer)
            .map_err(|error| launch::error("copying from the device", error))
    }

    /// Waits for everything that was launched.
    ///
    /// # Errors
    /// The driver's; errors of earlier launches surface here.
    pub fn synchronize(&self) -> Result<()> {
        self.stream
            .synchronize()
            .map_err(|error| launch::error("running kernels", error))
    }

    /// A mark at this point of what was launched.
    ///
    /// # Errors
    /// The driver's.
    pub fn mark(&self) -> Result<Mark> {
        let flags = cudarc::driver::sys::CUevent_flags::CU_EVENT_DEFAULT;
        self.stream
            .record_event(Some(flags))
            .map(Mark)
            .map_err(|error| launch::error("recording an event", error))
    }

    /// Milliseconds that the device took for what `work` launched, by events.
    ///
    /// # Errors
    /// Those of `work` and the driver's.
    pub fn time_ms(&self, work: impl FnOnce() -> Result<()>) -> Result<f32> {
        let start = self.mark()?;
        work()?;
        let end = self.mark()?;
        self.synchronize()?;
        start.ms_to(&end)
    }

    pub(crate) fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// Refuses a device without the instructions that `kernel` uses.
    ///
    /// # Errors
    /// [`CudaError::Capability`].
    pub fn check_capability(&self, kernel: Kernel) -> Result<()> {
        let found = self.info.compute_capability;
        let needed = if kernel.needs_hopper() {
            (9, 0)
        } else {
            (8, 0)
        };
        if found < needed || (kernel.needs_hopper() && found != needed) {
            return Err(CudaError::Capability {
                name: self.info.name.clone(),
                what: kernel.stem(),
                found,
                needed,
            });
        }
        Ok(())
    }

    /// A kernel's module: from memory, from the cache folder, or compiled now.
    pub(crate) fn module(&self, kernel: Kernel, config: KernelConfig) -> Result<Arc<CudaModule>> {
        self.check_capability(kernel)?;
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(module) = modules.get(&(kernel, config)) {
            return Ok(module.clone());
        }
        let cubin = self.cubin(kernel, config)?;
        let module = launch::load(&self.context, cubin)?;
        modules.insert((kernel, config), module.clone());
        Ok(module)
    }

    /// Machine code for this device. The cache's file name holds a hash of everything that the code depends on, its
    /// first 32 bytes a hash of the rest: a damaged file is compiled again.
    fn cubin(&self, kernel: Kernel, config: KernelConfig) -> Result<Vec<u8>> {
        let source = kernel.assemble(config);
        let arch = self.info.arch();
        let options = Kernel::options(&arch);
        let compiler = launch::compiler_version()?;
        let mut hash = Sha256::new();
        hash.update(source.as_bytes());
        hash.update(format!("{options:?}{compiler:?}"));
        let name = format!("{}-{arch}-{:x}.cubin", kernel.stem(), hash.finalize());
        let file = self.cache.as_ref().map(|folder| folder.join(name));
        if let Some(cubin) = file.as_deref().and_then(read_cached) {
            return Ok(cubin);
        }
        let cubin = launch::compile(kernel.stem(), &source, &arch, &options)?;
        if let Some(file) = file
            && let Err(error) = write_cached(&file, &cubin)
        {
            tracing::warn!(
                "compiled kernels cannot be kept in {}: {error}",
                file.display()
            );
        }
        Ok(cubin)
    }
}

fn read_cached(file: &Path) -> Option<Vec<u8>> {
    let bytes = std::fs::read(file).ok()?;
    let (hash, cubin) = bytes.split_at_checked(32)?;
    (Sha256::digest(cubin).as_slice() == hash).then(|| cubin.to_vec())
}

/// Written aside and renamed, so that a reader never sees half of it.
fn write_cached(file: &Path, cubin: &[u8]) -> std::io::Result<()> {
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let aside = file.with_extension(format!("{}.part", std::process::id()));
    let mut bytes = Sha256::digest(cubin).to_vec();
    bytes.extend_from_slice(cubin);
    std::fs::write(&aside, bytes)?;
    std::fs::rename(&aside, file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_gives_back_what_was_kept_and_nothing_damaged() {
        let folder = std::env::temp_dir().join(format!("moa-cubin-{}", std::process::id()));
        let file = folder.join("x.cubin");
        write_cached(&file, b"machine code").unwrap();
        assert_eq!(read_cached(&file).as_deref(), Some(&b"machine code"[..]));
        let mut bytes = std::fs::read(&file).unwrap();
        bytes[40] ^= 1;
        std::fs::write(&file, &bytes).unwrap();
        assert_eq!(read_cached(&file), None);
        std::fs::write(&file, &bytes[..20]).unwrap();
        assert_eq!(read_cached(&file), None);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
