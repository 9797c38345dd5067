//! Every call into CUDA that the compiler cannot check: libraries found at run time, NVRTC, tensor maps, launches.
//!
//! The only file of this crate with unsafe code. Callers have checked the shapes; each function here says what it
//! relies on. It deliberately chooses nothing: sizes, kernels and orders come from its callers.

#![expect(unsafe_code, reason = "the border to the driver and to NVRTC")]

use std::ffi::{CStr, CString, c_int, c_void};
use std::marker::PhantomData;
use std::sync::Arc;

use cudarc::cublaslt::{result as blas, sys as blas_sys};
use cudarc::driver::sys::{
    self as cuda, CUdevice_attribute, CUfunction_attribute_enum, CUtensorMap,
};
use cudarc::driver::{
    CudaContext, CudaFunction, CudaModule, CudaSlice, CudaStream, DevicePtr, DevicePtrMut,
    DeviceRepr, DriverError,
};
use cudarc::nvrtc::{Ptx, result as nvrtc, sys as nvrtc_sys};

use crate::extent::Extent;
use crate::matmul::{Product, Value, ValueType};
use crate::source::ElementType;
use crate::{CudaError, DeviceInfo, Element, Result};

/// Calls were written against this version of the driver's interface.
const NEEDED_DRIVER: (u32, u32) = (13, 0);

/// And against this one of the libraries beside it.
const NEEDED_LIBRARIES: u32 = 13;

/// Refuses a library of an older CUDA by its name.
fn check_library(library: &'static str, found: (u32, u32)) -> Result<()> {
    if found.0 >= NEEDED_LIBRARIES {
        return Ok(());
    }
    Err(CudaError::OldLibrary {
        library,
        found,
        needed: NEEDED_LIBRARIES,
    })
}

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

/// NVRTC's version, which compiled code depends on.
pub(crate) fn compiler_version() -> Result<(u32, u32)> {
    // SAFETY: only tries to open a library.
    if !unsafe { nvrtc_sys::is_culib_present() } {
        return Err(CudaError::NoCompiler {
            library: "libnvrtc.so.13",
        });
    }
    let (mut major, mut minor) = (0, 0);
    // SAFETY: writes two integers.
    unsafe { nvrtc_sys::nvrtcVersion(&raw mut major, &raw mut minor) }
        .result()
        .map_err(|e| CudaError::Driver {
            doing: "asking for NVRTC's version",
            message: e.to_string(),
        })?;
    let version = |number: c_int| u32::try_from(number).unwrap_or(0);
    let found = (version(major), version(minor));
    check_library("NVRTC", found)?;
    Ok(found)
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
    compiler_version()?;
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

fn default_pool(context: &Arc<CudaContext>) -> Result<cuda::CUmemoryPool> {
    let mut pool = std::ptr::null_mut();
    // SAFETY: the context's device came from the driver; writes one pointer.
    unsafe { cuda::cuDeviceGetDefaultMemPool(&raw mut pool, context.cu_device()) }
        .result()
        .map_err(|e| error("asking for the device's memory pool", e))?;
    Ok(pool)
}

/// Freed memory stays with the process, so that the next buffer costs no call to the system.
pub(crate) fn keep_freed_memory(context: &Arc<CudaContext>) -> Result<()> {
    let mut threshold = u64::MAX;
    let attribute = cuda::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    // SAFETY: this attribute is a 64-bit integer.
    unsafe {
        cuda::cuMemPoolSetAttribute(
            default_pool(context)?,
            attribute,
            (&raw mut threshold).cast(),
        )
    }
    .result()
    .map_err(|e| error("setting up the device's memory pool", e))
}

/// The most bytes that were allocated at once since the last call of this function.
pub(crate) fn peak_bytes(context: &Arc<CudaContext>) -> Result<u64> {
    let (mut bytes, mut zero) = (0u64, 0u64);
    let attribute = cuda::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH;
    let pool = default_pool(context)?;
    // SAFETY: this attribute is a 64-bit integer; setting it to 0 begins anew.
    unsafe {
        cuda::cuMemPoolGetAttribute(pool, attribute, (&raw mut bytes).cast())
            .result()
            .and_then(|()| {
                cuda::cuMemPoolSetAttribute(pool, attribute, (&raw mut zero).cast()).result()
            })
    }
    .map_err(|e| error("asking for the peak of allocated memory", e))?;
    Ok(bytes)
}

/// Gives memory that no buffer takes back to the system.
pub(crate) fn trim(context: &Arc<CudaContext>) -> Result<()> {
    // SAFETY: the pool is the device's own.
    unsafe { cuda::cuMemPoolTrimTo(default_pool(context)?, 0) }
        .result()
        .map_err(|e| error("giving memory back", e))
}

/// Memory whose contents are whatever was there before.
pub(crate) fn allocate<T: DeviceRepr>(
    stream: &Arc<CudaStream>,
    len: usize,
) -> Result<CudaSlice<T>> {
    // SAFETY: device memory is plain bytes to the host, and every kernel writes its outputs whole.
    unsafe { stream.alloc(len) }.map_err(|e| error("allocating", e))
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
pub(crate) struct Map(CUtensorMap);

/// Tiles of 64 rows by 64 channels of a tensor of `extent`; what lies outside reads as zero. The caller has checked that
/// `tensor` has as many elements as `extent` says.
pub(crate) fn tile_map<T: Element>(
    stream: &Arc<CudaStream>,
    tensor: &CudaSlice<T>,
    extent: Extent,
) -> Result<Map> {
    let dims = [extent.head_dim, extent.len, extent.heads].map(u64::from);
    let strides = [extent.row_stride(), extent.head_stride()].map(|stride| u64::from(stride) * 2);
    let mut map = CUtensorMap { opaque: [0; 16] };
    let (address, _guard) = tensor.device_ptr(stream);
    // SAFETY: the arrays have the lengths that rank 3 asks for; the address is only stored. The map is used in launches that are
    // ordered on this stream while the caller holds the tensor.
    unsafe {
        cuda::cuTensorMapEncodeTiled(
            &raw mut map,
            match T::TYPE {
                ElementType::F16 => cuda::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
                ElementType::Bf16 => cuda::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            },
            3,
            address as *mut c_void,
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

/// A kernel's argument. Buffers stay borrowed until the launch.
pub(crate) enum Arg<'a> {
    Map(Map),
    U32(u32),
    U64(u64),
    F32(f32),
    Pointer(cuda::CUdeviceptr, PhantomData<&'a ()>),
}

impl<'a> Arg<'a> {
    /// No buffer, where a kernel's description says that it may be missing.
    pub(crate) fn null() -> Self {
        Self::Pointer(0, PhantomData)
    }

    /// A buffer that the kernel reads.
    pub(crate) fn read<T>(stream: &Arc<CudaStream>, buffer: &'a CudaSlice<T>) -> Self {
        Self::Pointer(buffer.device_ptr(stream).0, PhantomData)
    }

    /// A buffer that the kernel writes.
    pub(crate) fn write<T>(stream: &Arc<CudaStream>, buffer: &'a mut CudaSlice<T>) -> Self {
        Self::Pointer(buffer.device_ptr_mut(stream).0, PhantomData)
    }
}

/// How many blocks and threads, and how much dynamic shared memory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Grid {
    pub(crate) blocks: (u32, u32),
    pub(crate) threads: u32,
    pub(crate) shared_bytes: u32,
}

/// Launches `function`. The launchers beside this file, one a kernel, give arguments in the order and of the types of the kernel's
/// signature, with buffers as large as the kernel's description says.
pub(crate) fn launch(
    stream: &Arc<CudaStream>,
    function: &CudaFunction,
    doing: &'static str,
    grid: Grid,
    args: &[Arg<'_>],
) -> Result<()> {
    start(stream, function, doing, grid, args, &mut [])
}

/// [`launch`] of a kernel that may begin while the one before it ends: until it says that it waits (griddepcontrol), it reads nothing that an earlier
/// launch writes. What it saves is the time between two kernels, which small ones feel.
pub(crate) fn launch_early(
    stream: &Arc<CudaStream>,
    function: &CudaFunction,
    doing: &'static str,
    grid: Grid,
    args: &[Arg<'_>],
) -> Result<()> {
    let early = cuda::CUlaunchAttribute {
        id: cuda::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
        pad: [0; 4],
        value: cuda::CUlaunchAttributeValue {
            programmaticStreamSerializationAllowed: 1,
        },
    };
    start(stream, function, doing, grid, args, &mut [early])
}

fn start(
    stream: &Arc<CudaStream>,
    function: &CudaFunction,
    doing: &'static str,
    grid: Grid,
    args: &[Arg<'_>],
    attributes: &mut [cuda::CUlaunchAttribute],
) -> Result<()> {
    bind(stream)?;
    let pointer = |arg: &Arg<'_>| -> *mut c_void {
        match arg {
            Arg::Map(map) => (&raw const *map).cast_mut().cast(),
            Arg::U32(value) => (&raw const *value).cast_mut().cast(),
            Arg::U64(value) => (&raw const *value).cast_mut().cast(),
            Arg::F32(value) => (&raw const *value).cast_mut().cast(),
            Arg::Pointer(address, _) => (&raw const *address).cast_mut().cast(),
        }
    };
    let mut pointers: Vec<*mut c_void> = args.iter().map(pointer).collect();
    let config = cuda::CUlaunchConfig {
        gridDimX: grid.blocks.0,
        gridDimY: grid.blocks.1,
        gridDimZ: 1,
        blockDimX: grid.threads,
        blockDimY: 1,
        blockDimZ: 1,
        sharedMemBytes: grid.shared_bytes,
        hStream: stream.cu_stream(),
        attrs: attributes.as_mut_ptr(),
        numAttrs: u32::try_from(attributes.len()).unwrap_or(0),
    };
    // SAFETY: what `launch`'s description asks of its callers; the driver copies arguments and attributes before it returns, and writes to neither.
    unsafe {
        cuda::cuLaunchKernelEx(
            &raw const config,
            function.cu_function(),
            pointers.as_mut_ptr(),
            std::ptr::null_mut(),
        )
    }
    .result()
    .map_err(|e| error(doing, e))
}

/// Makes the stream's context this thread's, as the driver and cuBLASLt expect it.
fn bind(stream: &Arc<CudaStream>) -> Result<()> {
    let bound = stream.context().bind_to_thread();
    bound.map_err(|e| error("entering the device's context", e))
}

fn blas_error(doing: &'static str) -> impl Fn(blas::CublasError) -> CudaError {
    move |e| CudaError::Blas {
        doing,
        message: format!("{:?}", e.0),
    }
}

/// Bytes that cuBLASLt may use beside its operands: what NVIDIA recommends for Hopper.
const BLAS_WORKSPACE_BYTES: usize = 32 << 20;

/// A handle of cuBLASLt and its workspace.
pub(crate) struct Blas {
    handle: blas_sys::cublasLtHandle_t,
    workspace: CudaSlice<u8>,
}

// SAFETY: cuBLASLt's handle may be used from any thread; the workspace is used in the order of one stream.
unsafe impl Send for Blas {}
// SAFETY: as above.
unsafe impl Sync for Blas {}

impl Drop for Blas {
    fn drop(&mut self) {
        // SAFETY: the handle was created and is destroyed once. Nothing is left to do when that fails.
        let _ = unsafe { blas::destroy_handle(self.handle) };
    }
}

/// One shape's descriptions and the algorithm that cuBLASLt chose for it.
pub(crate) struct BlasPlan {
    product: blas_sys::cublasLtMatmulDesc_t,
    layouts: [blas_sys::cublasLtMatrixLayout_t; 3],
    algorithm: Option<blas_sys::cublasLtMatmulAlgo_t>,
}

// SAFETY: descriptions are plain memory of cuBLASLt's, changed only under the lock that holds the plan.
unsafe impl Send for BlasPlan {}

impl Drop for BlasPlan {
    fn drop(&mut self) {
        for layout in self.layouts.into_iter().filter(|layout| !layout.is_null()) {
            // SAFETY: created, and destroyed once.
            let _ = unsafe { blas::destroy_matrix_layout(layout) };
        }
        // SAFETY: created, and destroyed once.
        let _ = unsafe { blas::destroy_matmul_desc(self.product) };
    }
}

fn data_type(value: ValueType) -> blas_sys::cudaDataType {
    match value {
        ValueType::F32 => blas_sys::cudaDataType::CUDA_R_32F,
        ValueType::F16 => blas_sys::cudaDataType::CUDA_R_16F,
        ValueType::Bf16 => blas_sys::cudaDataType::CUDA_R_16BF,
    }
}

/// Which ways of adding partial sums cuBLASLt may choose: those that keep them in the result's type are out where that has 16 bits.
fn partial_sums(output: ValueType) -> u32 {
    use blas_sys::cublasLtReductionScheme_t as Scheme;
    match output {
        ValueType::F32 => Scheme::CUBLASLT_REDUCTION_SCHEME_MASK as u32,
        ValueType::F16 | ValueType::Bf16 => Scheme::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32,
    }
}

impl Blas {
    pub(crate) fn new(stream: &Arc<CudaStream>) -> Result<Self> {
        // SAFETY: only tries to open a library; cudarc panics if it is used without one.
        if !unsafe { blas_sys::is_culib_present() } {
            return Err(CudaError::NoBlas {
                library: "libcublasLt.so.13",
            });
        }
        // SAFETY: asks for a number.
        let version = u32::try_from(unsafe { blas_sys::cublasLtGetVersion() }).unwrap_or(0);
        check_library("cuBLASLt", (version / 10_000, version % 10_000 / 100))?;
        bind(stream)?;
        Ok(Self {
            workspace: allocate(stream, BLAS_WORKSPACE_BYTES)?,
            handle: blas::create_handle().map_err(blas_error("opening cuBLASLt"))?,
        })
    }

    /// Describes `product` and asks for an algorithm.
    pub(crate) fn plan(&self, product: Product) -> Result<BlasPlan> {
        let (m, n, k) = (product.m, product.n, product.k);
        let wrong = || blas_error("describing a product");
        let mut plan = BlasPlan {
            product: blas::create_matmul_desc(
                blas_sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                blas_sys::cudaDataType::CUDA_R_32F,
            )
            .map_err(wrong())?,
            layouts: [std::ptr::null_mut(); 3],
            algorithm: None,
        };
        let (input, output) = (data_type(product.input), data_type(product.output));
        let a = if product.transposed { (k, m) } else { (m, k) };
        for (at, (kind, rows, columns)) in [(input, a.0, a.1), (input, k, n), (output, m, n)]
            .into_iter()
            .enumerate()
        {
            let ld = i64::try_from(rows).unwrap_or(i64::MAX);
            plan.layouts[at] =
                blas::create_matrix_layout(kind, rows, columns, ld).map_err(wrong())?;
        }
        use blas_sys::cublasLtMatmulDescAttributes_t as Attribute;
        let (transposed, workspace_bytes) = (i32::from(product.transposed), BLAS_WORKSPACE_BYTES);
        let epilogue = if product.bias {
            blas_sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS
        } else {
            blas_sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_DEFAULT
        };
        // SAFETY: the descriptions are alive; these attributes are 32-bit integers, and the preference is destroyed once.
        let found = unsafe {
            blas::set_matmul_desc_attribute(
                plan.product,
                Attribute::CUBLASLT_MATMUL_DESC_TRANSA,
                (&raw const transposed).cast(),
                size_of_val(&transposed),
            )
            .map_err(wrong())?;
            blas::set_matmul_desc_attribute(
                plan.product,
                Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE,
                (&raw const epilogue).cast(),
                size_of_val(&epilogue),
            )
            .map_err(wrong())?;
            let preference = blas::create_matmul_pref().map_err(wrong())?;
            let [a, b, d] = plan.layouts;
            let schemes = partial_sums(product.output);
            let found = blas::set_matmul_pref_attribute(
                preference,
                blas_sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                (&raw const workspace_bytes).cast(),
                size_of::<usize>(),
            )
            .and_then(|()| {
                blas::set_matmul_pref_attribute(
                    preference,
                    blas_sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                    (&raw const schemes).cast(),
                    size_of_val(&schemes),
                )
            })
            .and_then(|()| {
                blas::get_matmul_algo_heuristic(self.handle, plan.product, a, b, d, d, preference)
            });
            let _ = blas::destroy_matmul_pref(preference);
            found
        };
        plan.algorithm = Some(
            found
                .map_err(blas_error("choosing a product's algorithm"))?
                .algo,
        );
        Ok(plan)
    }

    /// `d = a b + bias`, or `d += a b`. The caller has checked that the buffers have the sizes that the plan's product says.
    pub(crate) fn run<I: Value, O: Value>(
        &self,
        stream: &Arc<CudaStream>,
        plan: &mut BlasPlan,
        (a, b, bias): (&CudaSlice<I>, &CudaSlice<I>, Option<&CudaSlice<I>>),
        d: &mut CudaSlice<O>,
        add: bool,
    ) -> Result<()> {
        bind(stream)?;
        let (alpha, beta) = (1.0f32, if add { 1.0f32 } else { 0.0 });
        let [a_layout, b_layout, d_layout] = plan.layouts;
        let (a, b) = (a.device_ptr(stream).0, b.device_ptr(stream).0);
        let d = d.device_ptr_mut(stream).0;
        let algorithm = plan
            .algorithm
            .as_ref()
            .map_or(std::ptr::null(), |algorithm| &raw const *algorithm);
        // SAFETY: what this function's description asks of its callers; scalars are read before the call returns, and everything on the
        // device is used in the order of this stream.
        unsafe {
            if let Some(bias) = bias {
                let bias = bias.device_ptr(stream).0;
                blas::set_matmul_desc_attribute(
                    plan.product,
                    blas_sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER,
                    (&raw const bias).cast(),
                    size_of_val(&bias),
                )
                .map_err(blas_error("describing a product"))?;
            }
            blas::matmul(
                self.handle,
                plan.product,
                (&raw const alpha).cast(),
                (&raw const beta).cast(),
                a as *const c_void,
                a_layout,
                b as *const c_void,
                b_layout,
                d as *const c_void,
                d_layout,
                d as *mut c_void,
                d_layout,
                algorithm,
                self.workspace.device_ptr(stream).0 as *mut c_void,
                BLAS_WORKSPACE_BYTES,
                stream.cu_stream().cast(),
            )
        }
        .map_err(blas_error("multiplying matrices"))
    }
}
