//! The ceilings that figures are compared with, measured on the same device in the same run: read bandwidth, and what
//! a dispatch costs that does nothing but wait for the one before it.

use crate::error::{EngineError, Result};
use crate::gpu::Gpu;

/// Bytes of each buffer that is read: a default binding.
const BUFFER_BYTES: u64 = 128 << 20;
/// Buffers, together larger than any cache.
const BUFFERS: u64 = 8;
/// Workgroups of a read.
const GROUPS: u32 = 4096;
/// Dispatches that do nothing.
const EMPTY_DISPATCHES: u32 = 512;
/// Times that each is measured; the best counts, since a ceiling is asked for.
const REPETITIONS: usize = 5;

/// What the device can do at best.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ceilings {
    /// Bytes a second of a plain read of 1 GiB.
    pub read_bytes_per_sec: f64,
    /// Seconds of one dispatch among many that depend on each other.
    pub empty_dispatch_secs: f64,
}

/// Measures a device that was opened with timestamps.
pub async fn probe(gpu: &Gpu) -> Result<Ceilings> {
    let refused = |reason: String| EngineError::Gpu {
        what: "the ceilings".into(),
        reason,
    };
    let device = gpu.device();
    let scope = device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
    let buffer = |label, bytes| {
        device.create_buffer(&wgpu::BufferDescriptor {
            label: Some(label),
            size: bytes,
            usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        })
    };
    let data: Vec<wgpu::Buffer> = (0..BUFFERS).map(|_| buffer("data", BUFFER_BYTES)).collect();
    let sums = buffer("sums", 16);
    if let Some(error) = scope.pop().await {
        return Err(refused(error.to_string()));
    }
    let module = device.create_shader_module(wgpu::include_wgsl!("probe.wgsl"));
    let entry = |binding, read_only| wgpu::BindGroupLayoutEntry {
        binding,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty: wgpu::BindingType::Buffer {
            ty: wgpu::BufferBindingType::Storage { read_only },
            has_dynamic_offset: false,
            min_binding_size: None,
        },
        count: None,
    };
    let layout = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
        label: Some("probe"),
        entries: &[entry(0, true), entry(1, false)],
    });
    let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
        label: Some("probe"),
        bind_group_layouts: &[Some(&layout)],
        ..wgpu::PipelineLayoutDescriptor::default()
    });
    let pipeline = |entry_point| {
        device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(entry_point),
            layout: Some(&pipeline_layout),
            module: &module,
            entry_point: Some(entry_point),
            compilation_options: wgpu::PipelineCompilationOptions::default(),
            cache: None,
        })
    };
    let (read, nothing) = (pipeline("read_all"), pipeline("nothing"));
    let groups: Vec<wgpu::BindGroup> = data
        .iter()
        .map(|data| {
            device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: Some("probe"),
                layout: &layout,
                entries: &[(0, data), (1, &sums)].map(|(binding, buffer)| wgpu::BindGroupEntry {
                    binding,
                    resource: buffer.as_entire_binding(),
                }),
            })
        })
        .collect();
    let mut best = Ceilings {
        read_bytes_per_sec: 0.0,
        empty_dispatch_secs: f64::INFINITY,
    };
    for _ in 0..REPETITIONS {
        let secs = gpu
            .time(|pass| {
                pass.set_pipeline(&read);
                for group in &groups {
                    pass.set_bind_group(0, group, &[]);
                    pass.dispatch_workgroups(GROUPS, 1, 1);
                }
            })
            .await?;
        #[expect(clippy::cast_precision_loss, reason = "2^30")]
        let rate = (BUFFER_BYTES * BUFFERS) as f64 / secs;
        best.read_bytes_per_sec = best.read_bytes_per_sec.max(rate);
        let secs = gpu
            .time(|pass| {
                pass.set_pipeline(&nothing);
                pass.set_bind_group(0, &groups[0], &[]);
                for _ in 0..EMPTY_DISPATCHES {
                    pass.dispatch_workgroups(1, 1, 1);
                }
            })
            .await?;
        let each = secs / f64::from(EMPTY_DISPATCHES);
        best.empty_dispatch_secs = best.empty_dispatch_secs.min(each);
    }
    for buffer in data.iter().chain([&sums]) {
        buffer.destroy();
    }
    Ok(best)
}
