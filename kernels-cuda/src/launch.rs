//! Every call into CUDA that the compiler cannot check: libraries found at run time, NVRTC, tensor maps, launches.
//!
//! The only file of this crate with unsafe code. Callers have checked the shapes; each function here says what it
//! relies on. It deliberately chooses nothing: sizes, kernels and orders come from its callers.

#![expect(unsafe_code, reason = "the border to the driver and to NVRTC")]

use std::ffi::{CStr, CString, c_int};
use std::sync::Arc;

use cudarc::driver::sys::{
    self as cuda, CUdevice_attribute, CUfunction_attribute_enum, CUtensorMap,
};
use cudarc::driver::{
    CudaContext, CudaFunction, CudaModule, CudaSlice, CudaStream, DevicePtr, DeviceRepr,
    DriverError, LaunchConfig, PushKernelArg,
};
use cudarc::nvrtc::{Ptx, result as nvrtc, sys as nvrtc_sys};

use crate::source::ElementType;
use crate::{CudaError, DeviceInfo, Result};

/// Calls were written against this version of the driver's interface.
const NEEDED_DRIVER: (u32, u32) = (13, 0);

/// A driver's error as ours. Memory is told apart, since callers can do something about it.
pub(crate) fn error(doing: &'static str, error: DriverError) -> CudaError {
    if error.0 == cuda::CUresult::CUDA_ERROR_OUT_OF_MEMORY {
        return CudaError::OutOfMemory { doing };
    }
    let said = error
        .error_string()
        .map(|text| text.to_string_lossy().into_owned());
    CudaError::Driver {
        doing,
        message: format!("{:?}: {}", error.0, said.unwrap_or_default()),
    }
}

/// What the driver says about device `ordinal`.
pub(crate) fn device_info(ordinal: usize) -> Result<DeviceInfo> {
    // SAFETY: only tries to open a library; cudarc panics if it is used without one, so nothing before this line uses it.
    if !unsafe { cuda::is_culib_present() } {
        return Err(CudaError::NoDriver {
            library: "libcuda.so.1",
        });
    }
    let mut version: c_int = 0;
    // SAFETY: writes one integer; needs no initialization.
    unsafe { cuda::cuDriverGetVersion(&raw mut version) }
        .result()
        .map_err(|e| error("asking for the driver's version", e))?;
    let version = u32::try_from(version).unwrap_or(0);
    let driver_version = (version / 1000, version % 1000 / 10);
    if driver_version < NEEDED_DRIVER {
        return Err(CudaError::OldDriver {
            found: driver_version,
            needed: NEEDED_DRIVER,
        });
    }
    use cudarc::driver::result;
    if let Err(e) = result::init() {
        return Err(match e.0 {
            cuda::CUresult::CUDA_ERROR_NO_DEVICE => CudaError::NoDevice { ordinal, count: 0 },
            _ => error("starting the driver", e),
        });
    }
    let count = result::device::get_count().map_err(|e| error("counting devices", e))?;
    let count = usize::try_from(count).unwrap_or(0);
    let device = c_int::try_from(ordinal).ok().filter(|_| ordinal < count);
    let device = device.ok_or(CudaError::NoDevice { ordinal, count })?;
    let device = result::device::get(device).map_err(|e| error("finding the device", e))?;
    let attribute = |which| {
        // SAFETY: `device` came from the driver.
        unsafe { result::device::get_attribute(device, which) }
            .map(|value| u32::try_from(value).unwrap_or(0))
            .map_err(|e| error("asking for a device's attribute", e))
    };
    // SAFETY: `device` came from the driver.
    let memory = unsafe { result::device::total_mem(device) };
    Ok(DeviceInfo {
        name: result::device::get_name(device)
            .map_err(|e| error("asking for a device's name", e))?,
        compute_capability: (
            attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        driver_version,
        memory_bytes: memory.map_err(|e| error("asking for a device's memory", e))? as u64,
        multiprocessors: attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
    })
}

fn find_compiler() -> Result<()> {
    // SAFETY: only tries to open a library.
    if unsafe { nvrtc_sys::is_culib_present() } {
        Ok(())
    } else {
        Err(CudaError::NoCompiler {
            library: "libnvrtc.so.13",
        })
    }
}

/// NVRTC's version, which compiled code depends on.
pub(crate) fn compiler_version() -> Result<(i32, i32)> {
    find_compiler()?;
    let (mut major, mut minor) = (0, 0);
    // SAFETY: writes two integers.
    unsafe { nvrtc_sys::nvrtcVersion(&raw mut major, &raw mut minor) }
        .result()
        .map_err(|e| CudaError::Driver {
            doing: "asking for NVRTC's version",
            message: e.to_string(),
        })?;
    Ok((major, minor))
}

/// A program of NVRTC, destroyed on every way out.
struct Program(nvrtc_sys::nvrtcProgram);

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: the program was created and is destroyed once. Nothing is left to do when that fails.
        let _ = unsafe { nvrtc::destroy_program(self.0) };
    }
}

/// Compiles `source` to machine code for `arch`.
pub(crate) fn compile(
    kernel: &'static str,
    source: &str,
    arch: &str,
    options: &[String],
) -> Result<Vec<u8>> {
    find_compiler()?;
    let refused = |log: String| CudaError::Compile {
        kernel,
        arch: arch.to_owned(),
        log,
    };
    let text = CString::new(source).map_err(|e| refused(e.to_string()))?;
    let name = CString::new(format!("{kernel}.cu")).map_err(|e| refused(e.to_string()))?;
    let program = nvrtc::create_program(&text, Some(&name)).map_err(|e| refused(e.to_string()))?;
    let program = Program(program);
    // SAFETY: the program is alive; options hold no zero bytes (they are ours).
    if let Err(e) = unsafe { nvrtc::compile_program(program.0, options) } {
        // SAFETY: the program is alive; the log is a string that ends in a zero byte.
        let log = unsafe { nvrtc::get_program_log(program.0) }.map(|log| {
            let bytes: Vec<u8> = log.iter().map(|&c| c.cast_unsigned()).collect();
            CStr::from_bytes_until_nul(&bytes)
                .map_or_else(|_| String::new(), |s| s.to_string_lossy().into_owned())
        });
        return Err(refused(format!("{e}\n{}", log.unwrap_or_default())));
    }
    let mut bytes = 0;
    // SAFETY: the program is alive and compiled; writes one integer.
    unsafe { nvrtc_sys::nvrtcGetCUBINSize(program.0, &raw mut bytes) }
        .result()
        .map_err(|e| refused(e.to_string()))?;
    let mut cubin = vec![0u8; bytes];
    // SAFETY: writes exactly the number of bytes just asked for.
    unsafe { nvrtc_sys::nvrtcGetCUBIN(program.0, cubin.as_mut_ptr().cast()) }
        .result()
        .map_err(|e| refused(e.to_string()))?;
    Ok(cubin)
}

/// Turns off cudarc's events for every buffer: [`crate::Gpu`] has one stream, which orders everything already.
pub(crate) fn order_by_stream_alone(context: &Arc<CudaContext>) {
    // SAFETY: no buffer exists yet, and no second stream is ever made from this context by this crate.
    unsafe { context.disable_event_tracking() };
}

/// Loads machine code.
pub(crate) fn load(context: &Arc<CudaContext>, cubin: Vec<u8>) -> Result<Arc<CudaModule>> {
    context
        .load_module(Ptx::from_binary(cubin))
        .map_err(|e| error("loading a kernel", e))
}

/// A kernel that may use `shared_bytes` of dynamic shared memory.
pub(crate) fn function(
    module: &Arc<CudaModule>,
    name: &str,
    shared_bytes: u32,
) -> Result<CudaFunction> {
    let function = module
        .load_function(name)
        .map_err(|e| error("finding a kernel", e))?;
    let bytes = c_int::try_from(shared_bytes).unwrap_or(c_int::MAX);
    function
        .set_attribute(
            CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
            bytes,
        )
        .map_err(|e| error("reserving shared memory", e))?;
    Ok(function)
}

/// A tensor map as a kernel's parameter.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Map(CUtensorMap);

// SAFETY: plain bytes of the size and alignment that the kernels' TensorMap has at least.
unsafe impl DeviceRepr for Map {}

/// Tiles of 64 rows by 64 channels of a contiguous `[heads, len, head_dim]` tensor; what lies outside reads as zero.
fn tile_map<T>(
    stream: &Arc<CudaStream>,
    tensor: &CudaSlice<T>,
    element: ElementType,
    heads: u32,
    len: u32,
    head_dim: u32,
) -> Result<Map> {
    let row_bytes = u64::from(head_dim) * 2;
    let dims = [u64::from(head_dim), u64::from(len), u64::from(heads)];
    let strides = [row_bytes, row_bytes * u64::from(len)];
    let mut map = CUtensorMap { opaque: [0; 16] };
    let (address, _guard) = tensor.device_ptr(stream);
    // SAFETY: the arrays have the lengths that rank 3 asks for; the address is only stored. The map is used in launches that are
    // ordered on this stream while the caller holds the tensor.
    unsafe {
        cuda::cuTensorMapEncodeTiled(
            &raw mut map,
            match element {
                ElementType::F16 => cuda::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
                ElementType::Bf16 => cuda::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            },
            3,
            address as *mut std::ffi::c_void,
            dims.as_ptr(),
            strides.as_ptr(),
            [64u32, 64, 1].as_ptr(),
            [1u32, 1, 1].as_ptr(),
            cuda::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            cuda::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
            cuda::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            cuda::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    }
    .result()
    .map_err(|e| error("describing a tensor", e))?;
    Ok(Map(map))
}

/// One launch of the influence kernels. The caller has checked that tensors have the sizes that `heads`, `kv_heads`, `len` and
/// `head_dim` say, that `curves` has `kv_heads * 3 * bins` values, and that `partials` holds the bins of all slots.
pub(crate) struct InfluenceLaunch<'a, T> {
    pub(crate) influence: &'a CudaFunction,
    pub(crate) reduce: &'a CudaFunction,
    pub(crate) element: ElementType,
    pub(crate) q: &'a CudaSlice<T>,
    pub(crate) k: &'a CudaSlice<T>,
    pub(crate) v: &'a CudaSlice<T>,
    pub(crate) grad_out: &'a CudaSlice<T>,
    pub(crate) row_dot: &'a CudaSlice<f32>,
    pub(crate) partials: &'a mut CudaSlice<f32>,
    pub(crate) curves: &'a mut CudaSlice<f64>,
    pub(crate) heads: u32,
    pub(crate) kv_heads: u32,
    pub(crate) len: u32,
    pub(crate) head_dim: u32,
    pub(crate) sink_tiles: u32,
    pub(crate) first_kv_head: u32,
    pub(crate) launch_kv_heads: u32,
    pub(crate) first_slot: u32,
    pub(crate) end_slot: u32,
    pub(crate) consumers: u32,
    pub(crate) shared_bytes: u32,
    /// `log2(e) * softmax_scale`.
    pub(crate) scale: f32,
}

impl<T> InfluenceLaunch<'_, T> {
    pub(crate) fn run(self, stream: &Arc<CudaStream>) -> Result<()> {
        let map =
            |tensor, heads| tile_map(stream, tensor, self.element, heads, self.len, self.head_dim);
        let q = map(self.q, self.heads)?;
        let k = map(self.k, self.kv_heads)?;
        let v = map(self.v, self.kv_heads)?;
        let grad_out = map(self.grad_out, self.heads)?;
        let group = self.heads / self.kv_heads;
        let bins = self.len.div_ceil(64);
        let blocks = (self.end_slot - self.first_slot).div_ceil(self.consumers);
        let mut launch = stream.launch_builder(self.influence);
        launch
            .arg(&q)
            .arg(&k)
            .arg(&v)
            .arg(&grad_out)
            .arg(self.row_dot)
            .arg(&mut *self.partials)
            .arg(&self.len)
            .arg(&group)
            .arg(&self.sink_tiles)
            .arg(&self.first_kv_head)
            .arg(&self.first_slot)
            .arg(&self.end_slot)
            .arg(&self.scale);
        // SAFETY: arguments are those of `influence` in cu/influence.cu, in order; sizes were checked by the caller.
        unsafe {
            launch.launch(LaunchConfig {
                grid_dim: (blocks, self.launch_kv_heads, 1),
                block_dim: (self.consumers * 128 + 32, 1, 1),
                shared_mem_bytes: self.shared_bytes,
            })
        }
        .map_err(|e| error("launching influence", e))?;
        let mut launch = stream.launch_builder(self.reduce);
        launch
            .arg(&*self.partials)
            .arg(self.curves)
            .arg(&bins)
            .arg(&group)
            .arg(&self.sink_tiles)
            .arg(&self.first_kv_head)
            .arg(&self.first_slot)
            .arg(&self.end_slot);
        // SAFETY: arguments are those of `influence_reduce` in cu/influence.cu, in order; sizes were checked by the caller.
        unsafe {
            launch.launch(LaunchConfig {
                grid_dim: (bins.div_ceil(32), self.launch_kv_heads, 1),
                block_dim: (256, 1, 1),
                shared_mem_bytes: 0,
            })
        }
        .map_err(|e| error("launching influence_reduce", e))?;
        Ok(())
    }
}
