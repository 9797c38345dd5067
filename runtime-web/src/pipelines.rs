//! Pipelines and bind groups, each made once. Kernels with the same bindings share a layout, so that `matmul` and
//! `matvec` take the same bind groups.

use std::collections::BTreeMap;

use moa_shaders::{Access, Dialect, ENTRY_POINT, HeadShape, Kernel, WIDE_WORKGROUP};

use crate::gpu::Gpu;

/// The binding that may be a constant instead.
const PARAMS: &str = "params";

/// What was made so far, for every variant that an engine has tried.
#[derive(Debug, Default)]
pub(crate) struct Made {
    layouts: Vec<(Vec<(u32, Access)>, wgpu::BindGroupLayout)>,
    /// By their source.
    pipelines: BTreeMap<String, wgpu::ComputePipeline>,
}

/// Every pipeline that the model's program uses.
pub(crate) struct Pipelines<'a> {
    gpu: &'a Gpu,
    shape: HeadShape,
    dialect: Dialect,
    made: &'a mut Made,
}

impl<'a> Pipelines<'a> {
    pub(crate) fn new(
        gpu: &'a Gpu,
        shape: HeadShape,
        dialect: Dialect,
        made: &'a mut Made,
    ) -> Self {
        Self {
            gpu,
            shape,
            dialect,
            made,
        }
    }

    /// Whether the variant rounds inputs of products to bytes.
    pub(crate) fn packed(&self) -> bool {
        self.dialect.variant.packed
    }

    /// Whether workgroups may have [`WIDE_WORKGROUP`] threads.
    pub(crate) fn wide(&self) -> bool {
        self.gpu
            .device
            .limits()
            .max_compute_invocations_per_workgroup
            >= WIDE_WORKGROUP
    }

    /// Stem and variant.
    pub(crate) fn label(&self, kernel: Kernel) -> String {
        kernel.label_in(self.shape, self.dialect)
    }

    /// The pipeline of `kernel`, compiled at its first use.
    pub(crate) fn pipeline(&mut self, kernel: Kernel) -> wgpu::ComputePipeline {
        self.get(kernel, None)
    }

    /// The same with the kernel's `params` in the source: nothing in it waits for them.
    pub(crate) fn pipeline_with(&mut self, kernel: Kernel, params: &[u8]) -> wgpu::ComputePipeline {
        self.get(kernel, Some(params))
    }

    /// A bind group with the named buffers, without `params` for a pipeline that has them in its source. A name that `kernel`
    /// does not bind is passed over; one that is missing is a defect, which the validation scope around the program's
    /// creation reports.
    pub(crate) fn bind(
        &mut self,
        kernel: Kernel,
        buffers: &[(&str, wgpu::BufferBinding<'_>)],
    ) -> wgpu::BindGroup {
        let has_params = buffers.iter().any(|(name, _)| *name == PARAMS);
        let layout = self.layout(kernel, has_params);
        let entries: Vec<wgpu::BindGroupEntry<'_>> = kernel
            .bindings()
            .iter()
            .filter_map(|binding| {
                let (_, buffer) = buffers.iter().find(|(name, _)| *name == binding.name)?;
                Some(wgpu::BindGroupEntry {
                    binding: binding.index,
                    resource: wgpu::BindingResource::Buffer(buffer.clone()),
                })
            })
            .collect();
        self.gpu
            .device
            .create_bind_group(&wgpu::BindGroupDescriptor {
                label: Some(&kernel.label()),
                layout: &layout,
                entries: &entries,
            })
    }

    fn get(&mut self, kernel: Kernel, params: Option<&[u8]>) -> wgpu::ComputePipeline {
        let source = kernel.source_with(self.shape, self.dialect, params);
        if let Some(made) = self.made.pipelines.get(&source) {
            return made.clone();
        }
        let layout = self.layout(kernel, params.is_none());
        let label = self.label(kernel);
        let device = &self.gpu.device;
        let module = trusted_module(device, &label, source.clone());
        let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some(&label),
            bind_group_layouts: &[Some(&layout)],
            ..wgpu::PipelineLayoutDescriptor::default()
        });
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(&label),
            layout: Some(&pipeline_layout),
            module: &module,
            entry_point: Some(ENTRY_POINT),
            // No kernel reads workgroup memory that it has not written. (Browsers write zeros all the same.)
            compilation_options: wgpu::PipelineCompilationOptions {
                zero_initialize_workgroup_memory: false,
                ..wgpu::PipelineCompilationOptions::default()
            },
            cache: None,
        });
        self.made.pipelines.insert(source, pipeline.clone());
        pipeline
    }

    fn layout(&mut self, kernel: Kernel, has_params: bool) -> wgpu::BindGroupLayout {
        let wanted: Vec<(u32, Access)> = kernel
            .bindings()
            .iter()
            .filter(|binding| has_params || binding.name != PARAMS)
            .map(|binding| (binding.index, binding.access))
            .collect();
        if let Some((_, layout)) = self.made.layouts.iter().find(|(known, _)| *known == wanted) {
            return layout.clone();
        }
        let entries: Vec<wgpu::BindGroupLayoutEntry> = wanted
            .iter()
            .map(|&(binding, access)| wgpu::BindGroupLayoutEntry {
                binding,
                visibility: wgpu::ShaderStages::COMPUTE,
                ty: wgpu::BindingType::Buffer {
                    ty: match access {
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
        let layout = self
            .gpu
            .device
            .create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
                label: Some(kernel.stem()),
                entries: &entries,
            });
        self.made.layouts.push((wanted, layout.clone()));
        layout
    }
}

/// A module without the counters that wgpu puts into every loop against endless ones, for they keep drivers from
/// unrolling. Bounds are checked as ever. In a browser this is an ordinary module.
#[expect(unsafe_code, reason = "wgpu marks the choice of checks as unsafe")]
fn trusted_module(device: &wgpu::Device, label: &str, source: String) -> wgpu::ShaderModule {
    let descriptor = wgpu::ShaderModuleDescriptor {
        label: Some(label),
        source: wgpu::ShaderSource::Wgsl(source.into()),
    };
    let checks = wgpu::ShaderRuntimeChecks {
        force_loop_bounding: false,
        ..wgpu::ShaderRuntimeChecks::checked()
    };
    // SAFETY: the source is one of this project's own kernels, and each of their loops counts up to a bound that the
    // host has set: the sizes of a checked model, a work list, the tokens in flight.
    unsafe { device.create_shader_module_trusted(descriptor, checks) }
}
