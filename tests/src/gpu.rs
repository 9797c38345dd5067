//! One kernel on a device with WebGPU's default limits, and for variants on one with more features and larger workgroups: outputs
//! poisoned before, guard words behind every buffer.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};

use moa_shaders::{
    Access, Compiler, Dialect, ENTRY_POINT, HeadShape, Kernel, Products, Variant, WIDE_WORKGROUP,
};

/// A NaN with a payload that no kernel writes.
pub const POISON: u32 = 0x7fc0_beef;
const GUARD: u32 = 0xdead_c0de;
const GUARD_WORDS: usize = 64;

/// A device for kernels, one at a time.
#[derive(Debug)]
pub struct TestGpu {
    device: wgpu::Device,
    queue: wgpu::Queue,
    name: String,
    dialect: Dialect,
    subgroup: u32,
    pipelines: HashMap<String, wgpu::ComputePipeline>,
}

/// What a kernel binds under a name, in words. Writable buffers come back.
#[derive(Debug, Clone)]
pub enum Data<'a> {
    /// Values.
    F32(&'a [f32]),
    /// Words.
    U32(&'a [u32]),
    /// Bytes as a file has them; whole words.
    Bytes(&'a [u8]),
    /// So many words of [`POISON`]: an output.
    Poison(usize),
}

impl Data<'_> {
    fn words(&self) -> Vec<u32> {
        match self {
            Self::F32(values) => values.iter().map(|value| value.to_bits()).collect(),
            Self::U32(words) => words.to_vec(),
            Self::Bytes(bytes) => bytemuck::pod_collect_to_vec(bytes),
            Self::Poison(words) => vec![POISON; *words],
        }
    }
}

/// What kernels use beyond the defaults, where it is there.
const FEATURES: wgpu::Features = wgpu::Features::SUBGROUP.union(wgpu::Features::SHADER_F16);

/// WebGPU's default for a workgroup.
const MAX_THREADS: u32 = 256;

/// Devices of one kind, opened as tests that run side by side need them: a software GPU compiles a device's pipelines one
/// after the other, and that is what these tests wait for.
struct Pool {
    devices: [OnceLock<Mutex<TestGpu>>; 4],
    features: wgpu::Features,
}

impl Pool {
    const fn new(features: wgpu::Features) -> Self {
        Self {
            devices: [const { OnceLock::new() }; 4],
            features,
        }
    }

    /// The first device that nobody has, or the last one once it is free.
    fn take(&'static self) -> MutexGuard<'static, TestGpu> {
        let open = |device: &'static OnceLock<Mutex<TestGpu>>| {
            device.get_or_init(|| Mutex::new(TestGpu::open(self.features)))
        };
        let [first @ .., last] = &self.devices;
        first
            .iter()
            .find_map(|device| match open(device).try_lock() {
                Ok(gpu) => Some(gpu),
                Err(TryLockError::Poisoned(gpu)) => Some(gpu.into_inner()),
                Err(TryLockError::WouldBlock) => None,
            })
            .unwrap_or_else(|| open(last).lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A device for one kernel after another. Fails the test where there is none: tests that may lack one are ignored instead.
pub fn test_gpu() -> MutexGuard<'static, TestGpu> {
    test_gpu_in(Dialect::BASE)
}

/// A device for kernels in a dialect: one of default limits without any feature for the base.
pub fn test_gpu_in(dialect: Dialect) -> MutexGuard<'static, TestGpu> {
    static PLAIN: Pool = Pool::new(wgpu::Features::empty());
    static EXTENDED: Pool = Pool::new(FEATURES);
    let pool = if dialect.variant == Variant::BASE {
        &PLAIN
    } else {
        &EXTENDED
    };
    let mut gpu = pool.take();
    gpu.dialect = dialect;
    gpu
}

fn dialect(variant: Variant, subgroup: u32) -> Dialect {
    Dialect {
        variant,
        subgroup,
        compiler: Compiler::HERE,
    }
}

/// The base and, where the device has subgroups, exchange within them: of their smallest size, and of four threads, which
/// is less than some have.
pub fn reductions() -> Vec<Dialect> {
    let variant = Variant {
        subgroups: true,
        ..Variant::BASE
    };
    let gpu = test_gpu_in(dialect(variant, 4));
    let mut list = vec![Dialect::BASE];
    if gpu.device.features().contains(wgpu::Features::SUBGROUP) {
        list.push(dialect(variant, gpu.subgroup));
        if gpu.subgroup > 4 {
            list.push(dialect(variant, 4));
        }
    }
    list
}

/// Decode with inputs as codes: on a device that has more than the defaults, though it needs no feature.
pub fn packed() -> Dialect {
    dialect(
        Variant {
            packed: true,
            ..Variant::BASE
        },
        1,
    )
}

/// The ways to multiply that the device has.
pub fn products() -> Vec<Dialect> {
    let variant = |products| Variant {
        products,
        ..Variant::BASE
    };
    let gpu = test_gpu_in(dialect(variant(Products::Dp4a), 1));
    let halves = gpu.device.features().contains(wgpu::Features::SHADER_F16);
    Products::ALL
        .into_iter()
        .filter(|products| *products != Products::F16 || halves)
        .map(|products| dialect(variant(products), 1))
        .collect()
}

impl TestGpu {
    fn open(features: wgpu::Features) -> Self {
        let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
        descriptor.flags = wgpu::InstanceFlags::empty();
        let instance = wgpu::Instance::new(descriptor);
        let adapter =
            pollster::block_on(instance.request_adapter(&wgpu::RequestAdapterOptions::default()))
                .unwrap_or_else(|error| panic!("MOA_TEST_WGPU=yes, but no WebGPU device: {error}"));
        let mut limits = wgpu::Limits::default();
        if !features.is_empty() {
            let offered = adapter.limits();
            let threads = offered
                .max_compute_invocations_per_workgroup
                .min(offered.max_compute_workgroup_size_x)
                .clamp(MAX_THREADS, WIDE_WORKGROUP);
            limits.max_compute_invocations_per_workgroup = threads;
            limits.max_compute_workgroup_size_x = threads;
        }
        let (device, queue) = pollster::block_on(adapter.request_device(&wgpu::DeviceDescriptor {
            required_features: features & adapter.features(),
            required_limits: limits,
            ..wgpu::DeviceDescriptor::default()
        }))
        .unwrap_or_else(|error| panic!("MOA_TEST_WGPU=yes, but no WebGPU device: {error}"));
        let info = adapter.get_info();
        Self {
            device,
            queue,
            name: info.name,
            dialect: Dialect::BASE,
            subgroup: info.subgroup_min_size,
            pipelines: HashMap::new(),
        }
    }

    /// Threads that a workgroup may have.
    pub fn threads(&self) -> u32 {
        self.device.limits().max_compute_invocations_per_workgroup
    }

    /// The adapter's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `kernel` over `grid` workgroups and returns the writable buffers. Panics where a guard word changed or a
    /// binding is missing.
    pub fn run(
        &mut self,
        kernel: Kernel,
        shape: HeadShape,
        grid: (u32, u32),
        data: &[(&str, Data<'_>)],
    ) -> BTreeMap<&'static str, Vec<u32>> {
        let source = kernel.source_in(shape, self.dialect);
        self.run_source(kernel, source, grid, data)
    }

    /// The same with the kernel's `params` as constants in its source.
    pub fn run_with_constants(
        &mut self,
        kernel: Kernel,
        shape: HeadShape,
        grid: (u32, u32),
        data: &[(&str, Data<'_>)],
    ) -> BTreeMap<&'static str, Vec<u32>> {
        let params = data.iter().find(|(name, _)| *name == "params");
        let params: Vec<u32> = params.map_or(Vec::new(), |(_, params)| params.words());
        let source = kernel.source_with(shape, self.dialect, Some(bytemuck::cast_slice(&params)));
        self.run_source(kernel, source, grid, data)
    }

    fn run_source(
        &mut self,
        kernel: Kernel,
        source: String,
        grid: (u32, u32),
        data: &[(&str, Data<'_>)],
    ) -> BTreeMap<&'static str, Vec<u32>> {
        let pipeline = self.pipeline(kernel, source);
        let mut outputs = Vec::new();
        let mut buffers = Vec::new();
        for binding in kernel.bindings() {
            let (_, data) = data
                .iter()
                .find(|(name, _)| *name == binding.name)
                .unwrap_or_else(|| panic!("{} binds {}", kernel.label(), binding.name));
            let mut words = data.words();
            let len = words.len();
            if binding.access != Access::Uniform {
                words.extend([GUARD; GUARD_WORDS]);
            }
            let usage = if binding.access == Access::Uniform {
                wgpu::BufferUsages::UNIFORM
            } else {
                wgpu::BufferUsages::STORAGE
            };
            let buffer = self.buffer(
                words.len(),
                usage | wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::COPY_SRC,
            );
            self.queue
                .write_buffer(&buffer, 0, bytemuck::cast_slice(&words));
            if binding.access != Access::Uniform {
                outputs.push((binding.name, binding.access, len, words, buffer.clone()));
            }
            buffers.push((binding.index, buffer));
        }
        let entries: Vec<_> = buffers
            .iter()
            .map(|(binding, buffer)| wgpu::BindGroupEntry {
                binding: *binding,
                resource: buffer.as_entire_binding(),
            })
            .collect();
        let bind_group = self.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: None,
            layout: &pipeline.get_bind_group_layout(0),
            entries: &entries,
        });
        let mut encoder = self
            .device
            .create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            pass.set_pipeline(&pipeline);
            pass.set_bind_group(0, &bind_group, &[]);
            pass.dispatch_workgroups(grid.0, grid.1, 1);
        }
        self.queue.submit([encoder.finish()]);

        let mut results = BTreeMap::new();
        for (name, access, len, before, buffer) in outputs {
            let mut words = self.read(&buffer, before.len());
            let guards = words.split_off(len);
            assert!(
                guards.iter().all(|&word| word == GUARD),
                "{}: {name} was written past its end",
                kernel.label()
            );
            if access == Access::ReadWrite {
                results.insert(name, words);
            } else {
                assert!(
                    words == before[..len],
                    "{}: {name} is only read",
                    kernel.label()
                );
            }
        }
        results
    }

    fn pipeline(&mut self, kernel: Kernel, source: String) -> wgpu::ComputePipeline {
        if let Some(pipeline) = self.pipelines.get(&source) {
            return pipeline.clone();
        }
        // An explicit layout: the automatic one leaves out what a variant does not use.
        let entries: Vec<_> = kernel
            .bindings()
            .iter()
            .map(|binding| wgpu::BindGroupLayoutEntry {
                binding: binding.index,
                visibility: wgpu::ShaderStages::COMPUTE,
                ty: wgpu::BindingType::Buffer {
                    ty: match binding.access {
                        Access::Uniform => wgpu::BufferBindingType::Uniform,
                        Access::Read => wgpu::BufferBindingType::Storage { read_only: true },
                        Access::ReadWrite => wgpu::BufferBindingType::Storage { read_only: false },
                    },
                    has_dynamic_offset: false,
                    min_binding_size: None,
                },
                count: None,
            })
            .collect();
        let device = &self.device;
        let layout = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
            label: None,
            entries: &entries,
        });
        let layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: None,
            bind_group_layouts: &[Some(&layout)],
            ..wgpu::PipelineLayoutDescriptor::default()
        });
        let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: Some(&kernel.label()),
            source: wgpu::ShaderSource::Wgsl(source.clone().into()),
        });
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(&kernel.label()),
            layout: Some(&layout),
            module: &module,
            entry_point: Some(ENTRY_POINT),
            // As the engine does: kernels must not count on zeros.
            compilation_options: wgpu::PipelineCompilationOptions {
                zero_initialize_workgroup_memory: false,
                ..wgpu::PipelineCompilationOptions::default()
            },
            cache: None,
        });
        self.pipelines.insert(source, pipeline.clone());
        pipeline
    }

    fn buffer(&self, words: usize, usage: wgpu::BufferUsages) -> wgpu::Buffer {
        self.device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: words as u64 * 4,
            usage,
            mapped_at_creation: false,
        })
    }

    fn read(&self, buffer: &wgpu::Buffer, words: usize) -> Vec<u32> {
        let staging = self.buffer(
            words,
            wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
        );
        let mut encoder = self
            .device
            .create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        encoder.copy_buffer_to_buffer(buffer, 0, &staging, 0, words as u64 * 4);
        self.queue.submit([encoder.finish()]);
        staging.map_async(wgpu::MapMode::Read, .., |result| {
            result.expect("a mappable buffer");
        });
        self.device
            .poll(wgpu::PollType::wait_indefinitely())
            .expect("the device answers");
        let view = staging.get_mapped_range(..).expect("mapped above");
        bytemuck::pod_collect_to_vec(&view)
    }
}

/// Words as the f32 values that they are.
pub fn floats(words: &[u32]) -> Vec<f32> {
    words.iter().map(|&word| f32::from_bits(word)).collect()
}
