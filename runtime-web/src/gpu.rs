//! Adapter and device: the only place where native and browser would differ, and wgpu hides most of it.
//!
//! Exactly `min(needed, offered)` is asked of the adapter (and the largest workgroups of use, where they are offered), and
//! of features those that the caller has a use for and the adapter offers, so that every device with WebGPU's default limits
//! will do wherever the model fits.

use std::sync::{Arc, Mutex, PoisonError};

use moa_shaders::{Products, Variant, WIDE_WORKGROUP};

use crate::error::{EngineError, Result};
use crate::signal::signal;

/// How the device is chosen.
#[derive(Debug, Clone, Copy, Default)]
pub struct GpuOptions {
    /// Ask for nothing beyond WebGPU's default limits and features, whatever the adapter offers.
    pub default_limits: bool,
    /// What kernels shall be able to use beyond the default features, where the adapter offers it.
    pub extras: Extras,
    /// Prefer the adapter that draws less power.
    pub low_power: bool,
    /// Ask for timestamps, to time single kernels, as `moa-run bench --kernels` does: nothing in a page.
    pub timestamps: bool,
}

/// What a device may have that kernels use, beyond WebGPU's defaults.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Extras {
    /// Exchange within subgroups. In a browser wgpu cannot ask for it: whoever says so here asks beside it.
    pub subgroups: bool,
    /// Arithmetic in f16.
    pub f16: bool,
    /// Products of packed bytes: a part of the language, no feature. In a browser the caller knows whether it is there.
    pub dp4a: bool,
}

impl Extras {
    /// Everything.
    pub const ALL: Self = Self {
        subgroups: true,
        f16: true,
        dp4a: true,
    };

    /// What a variant needs.
    pub fn of(variant: Variant) -> Self {
        Self {
            subgroups: variant.subgroups,
            f16: variant.products == Products::F16,
            dp4a: variant.products == Products::Dp4a || variant.packed,
        }
    }

    /// What is in both.
    pub fn and(self, other: Self) -> Self {
        Self {
            subgroups: self.subgroups && other.subgroups,
            f16: self.f16 && other.f16,
            dp4a: self.dp4a && other.dp4a,
        }
    }

    /// Whether there is everything that a variant needs.
    pub fn allow(self, variant: Variant) -> bool {
        let needed = Self::of(variant);
        self.and(needed) == needed
    }

    /// What is asked for and offered.
    fn offered(self, features: wgpu::Features) -> Self {
        self.and(Self {
            subgroups: cfg!(target_arch = "wasm32") || features.contains(wgpu::Features::SUBGROUP),
            f16: features.contains(wgpu::Features::SHADER_F16),
            dp4a: true,
        })
    }

    fn features(self) -> wgpu::Features {
        let mut features = wgpu::Features::empty();
        features.set(wgpu::Features::SUBGROUP, self.subgroups);
        features.set(wgpu::Features::SHADER_F16, self.f16);
        features
    }
}

/// The largest sizes that a model at a context takes, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Needs {
    /// The largest buffer.
    pub buffer_bytes: u64,
    /// The largest part of a buffer that one kernel sees.
    pub binding_bytes: u64,
    /// The largest buffer where no embedding and no `lm_head` is cut: not needed, but a dispatch less for each cut.
    pub table_bytes: u64,
}

/// A device and what happened to it. Clones are the same device.
#[derive(Debug, Clone)]
pub struct Gpu {
    pub(crate) device: wgpu::Device,
    pub(crate) queue: wgpu::Queue,
    info: wgpu::AdapterInfo,
    extras: Extras,
    faults: Arc<Faults>,
}

#[derive(Debug, Default)]
struct Faults {
    lost: Mutex<Option<String>>,
    refused: Mutex<Option<String>>,
}

fn put(slot: &Mutex<Option<String>>, text: String) {
    slot.lock()
        .unwrap_or_else(PoisonError::into_inner)
        .get_or_insert(text);
}

fn get(slot: &Mutex<Option<String>>) -> Option<String> {
    slot.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

impl Gpu {
    /// A device that offers what `needs` says.
    pub async fn open(options: GpuOptions, needs: Needs) -> Result<Self> {
        let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
        descriptor.flags = wgpu::InstanceFlags::empty();
        let instance = wgpu::Instance::new(descriptor);
        let power_preference = if options.low_power {
            wgpu::PowerPreference::LowPower
        } else {
            wgpu::PowerPreference::HighPerformance
        };
        let adapter = instance
            .request_adapter(&wgpu::RequestAdapterOptions {
                power_preference,
                ..wgpu::RequestAdapterOptions::default()
            })
            .await
            .map_err(|error| EngineError::NoDevice {
                reason: error.to_string(),
            })?;
        let offered = if options.default_limits {
            wgpu::Limits::default()
        } else {
            adapter.limits()
        };
        let limits = limits_for(needs, &offered)?;
        let extras = if options.default_limits {
            Extras::default()
        } else {
            options.extras.offered(adapter.features())
        };
        let mut features = extras.features();
        if options.timestamps {
            features |=
                wgpu::Features::TIMESTAMP_QUERY | wgpu::Features::TIMESTAMP_QUERY_INSIDE_PASSES;
        }
        let (device, queue) = adapter
            .request_device(&wgpu::DeviceDescriptor {
                label: Some("moa"),
                required_features: features,
                required_limits: limits,
                memory_hints: wgpu::MemoryHints::MemoryUsage,
                ..wgpu::DeviceDescriptor::default()
            })
            .await
            .map_err(|error| EngineError::NoDevice {
                reason: error.to_string(),
            })?;
        let faults = Arc::new(Faults::default());
        let on_lost = Arc::clone(&faults);
        device.set_device_lost_callback(move |reason, message| {
            put(&on_lost.lost, format!("{reason:?}: {message}"));
        });
        let on_error = Arc::clone(&faults);
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            put(&on_error.refused, error.to_string());
        }));
        Ok(Self {
            device,
            queue,
            info: adapter.get_info(),
            extras,
            faults,
        })
    }

    /// Fails where this device was not asked for as much as `needs` says.
    pub(crate) fn check_needs(&self, needs: Needs) -> Result<()> {
        limits_for(needs, &self.device.limits()).map(drop)
    }

    /// The device.
    pub fn device(&self) -> &wgpu::Device {
        &self.device
    }

    /// The device's queue.
    pub fn queue(&self) -> &wgpu::Queue {
        &self.queue
    }

    /// The adapter's own words about itself.
    pub fn adapter(&self) -> &wgpu::AdapterInfo {
        &self.info
    }

    /// What the device has beyond WebGPU's defaults, of what was asked for.
    pub fn extras(&self) -> Extras {
        self.extras
    }

    /// Bytes that one binding can hold of a buffer of its own.
    pub(crate) fn largest_binding(&self) -> u64 {
        largest_binding(&self.device.limits())
    }

    /// Neighboring threads that surely share a subgroup: WGSL's least where the adapter does not say.
    pub(crate) fn subgroup(&self) -> u32 {
        let least = self.info.subgroup_min_size.clamp(4, 128);
        1 << least.ilog2()
    }

    /// Whether the "GPU" is a program: then work is cut into smaller portions.
    pub fn is_software(&self) -> bool {
        let name = self.info.name.to_ascii_lowercase();
        self.info.device_type == wgpu::DeviceType::Cpu
            || ["llvmpipe", "swiftshader"]
                .iter()
                .any(|known| name.contains(known))
    }

    /// Why the device was lost, once it is.
    pub fn lost(&self) -> Option<String> {
        get(&self.faults.lost)
    }

    /// Fails once the device is lost or has refused something.
    pub(crate) fn check(&self) -> Result<()> {
        if let Some(reason) = self.lost() {
            return Err(EngineError::DeviceLost { reason });
        }
        match get(&self.faults.refused) {
            Some(reason) => Err(EngineError::Gpu {
                what: "a command".into(),
                reason,
            }),
            None => Ok(()),
        }
    }

    /// Waits until everything submitted so far is done.
    pub(crate) async fn done(&self) -> Result<()> {
        let (sender, receiver) = signal();
        self.queue.on_submitted_work_done(move || sender.send(()));
        self.pump()?;
        let _ = receiver.await;
        self.check()
    }

    /// Copies a buffer that may be mapped for reading to the host.
    pub(crate) async fn read(&self, staging: &wgpu::Buffer, bytes: u64) -> Result<Vec<u8>> {
        let (sender, receiver) = signal();
        staging.map_async(wgpu::MapMode::Read, ..bytes, move |result| {
            sender.send(result);
        });
        self.pump()?;
        let mapped = receiver.await;
        self.take_mapped(staging, bytes, mapped)
    }

    /// The bytes of a buffer whose mapping was answered; it is unmapped afterwards.
    pub(crate) fn take_mapped(
        &self,
        staging: &wgpu::Buffer,
        bytes: u64,
        mapped: Option<std::result::Result<(), wgpu::BufferAsyncError>>,
    ) -> Result<Vec<u8>> {
        self.check()?;
        let refused = |reason: String| EngineError::Gpu {
            what: "a read-back".into(),
            reason,
        };
        match mapped {
            Some(Ok(())) => {
                let view = staging
                    .get_mapped_range(..bytes)
                    .map_err(|error| refused(error.to_string()))?;
                let data = view.to_vec();
                drop(view);
                staging.unmap();
                Ok(data)
            }
            Some(Err(error)) => Err(refused(error.to_string())),
            None => Err(refused("the callback never came".into())),
        }
    }

    /// Natively callbacks come only from `poll`; in a browser they come by themselves.
    fn pump(&self) -> Result<()> {
        self.poll(None)
    }

    /// The same for what was submitted up to here, however much came after.
    pub(crate) fn pump_until(&self, submission: &wgpu::SubmissionIndex) -> Result<()> {
        self.poll(Some(submission.clone()))
    }

    fn poll(&self, submission_index: Option<wgpu::SubmissionIndex>) -> Result<()> {
        let wait = wgpu::PollType::Wait {
            submission_index,
            timeout: None,
        };
        if let Err(error) = self.device.poll(wait) {
            self.check()?;
            return Err(EngineError::Gpu {
                what: "waiting".into(),
                reason: error.to_string(),
            });
        }
        Ok(())
    }
}

/// WebGPU's defaults, raised to what is needed where the adapter has it, and to the largest workgroups of use.
fn limits_for(needs: Needs, offered: &wgpu::Limits) -> Result<wgpu::Limits> {
    let mut limits = wgpu::Limits::default();
    let raise = |what, default: u64, needed: u64, offered: u64| {
        if needed <= default {
            Ok(default)
        } else if needed <= offered {
            Ok(needed)
        } else {
            Err(EngineError::Limits {
                what,
                needed,
                offered,
            })
        }
    };
    limits.max_buffer_size = raise(
        "maxBufferSize",
        limits.max_buffer_size,
        needs.buffer_bytes,
        offered.max_buffer_size,
    )?;
    limits.max_storage_buffer_binding_size = raise(
        "maxStorageBufferBindingSize",
        limits.max_storage_buffer_binding_size,
        needs.binding_bytes,
        offered.max_storage_buffer_binding_size,
    )?;
    let table_bytes = needs.table_bytes.min(largest_binding(offered));
    limits.max_buffer_size = limits.max_buffer_size.max(table_bytes);
    limits.max_storage_buffer_binding_size =
        limits.max_storage_buffer_binding_size.max(table_bytes);
    // Kernels do without where it is not offered.
    if offered.max_compute_invocations_per_workgroup >= WIDE_WORKGROUP
        && offered.max_compute_workgroup_size_x >= WIDE_WORKGROUP
    {
        limits.max_compute_invocations_per_workgroup = WIDE_WORKGROUP;
        limits.max_compute_workgroup_size_x = WIDE_WORKGROUP;
    }
    Ok(limits)
}

fn largest_binding(limits: &wgpu::Limits) -> u64 {
    limits
        .max_buffer_size
        .min(limits.max_storage_buffer_binding_size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_asked_for_where_they_are_needed_and_offered() {
        let all = wgpu::Features::SUBGROUP | wgpu::Features::SHADER_F16;
        assert_eq!(Extras::ALL.offered(all).features(), all);
        assert_eq!(
            Extras::ALL.offered(wgpu::Features::SHADER_F16),
            Extras {
                subgroups: false,
                ..Extras::ALL
            }
        );
        for variant in Variant::all() {
            let needed = Extras::of(variant);
            assert!(needed.allow(variant) && Extras::ALL.allow(variant));
            assert_eq!(Extras::default().allow(variant), variant == Variant::BASE);
            let asked = needed.offered(wgpu::Features::all()).features();
            assert_eq!(
                asked.contains(wgpu::Features::SUBGROUP),
                variant.subgroups,
                "{variant}"
            );
            assert_eq!(
                asked.contains(wgpu::Features::SHADER_F16),
                variant.products == Products::F16,
                "{variant}"
            );
        }
    }

    #[test]
    fn limits_are_asked_for_exactly() {
        let offered = wgpu::Limits {
            max_buffer_size: 1 << 30,
            max_storage_buffer_binding_size: 1 << 29,
            ..wgpu::Limits::default()
        };
        let default = wgpu::Limits::default();
        let needs = |bytes| Needs {
            buffer_bytes: bytes,
            binding_bytes: bytes,
            table_bytes: 0,
        };
        assert_eq!(
            limits_for(needs(1 << 20), &offered).unwrap(),
            default,
            "never less than the defaults"
        );
        let raised = limits_for(needs(300 << 20), &offered).unwrap();
        assert_eq!(raised.max_buffer_size, 300 << 20, "exactly what is needed");
        assert_eq!(raised.max_storage_buffer_binding_size, 300 << 20);
        let refused = limits_for(needs(600 << 20), &offered).unwrap_err();
        assert!(matches!(
            refused,
            EngineError::Limits { what: "maxStorageBufferBindingSize", needed, offered }
                if needed == 600 << 20 && offered == 1 << 29
        ));
        assert!(
            limits_for(needs(200 << 20), &default).is_err(),
            "defaults forced"
        );
        let wide = wgpu::Limits {
            max_compute_invocations_per_workgroup: 1024,
            max_compute_workgroup_size_x: 1024,
            ..default.clone()
        };
        let asked_for = limits_for(needs(1 << 20), &wide).unwrap();
        assert_eq!(
            asked_for.max_compute_invocations_per_workgroup,
            WIDE_WORKGROUP
        );
        assert_eq!(asked_for.max_compute_workgroup_size_x, WIDE_WORKGROUP);
        // What would only be better is asked for as far as it goes, and refused by nobody.
        let table = |bytes| Needs {
            table_bytes: bytes,
            ..needs(1 << 20)
        };
        let asked = |bytes, offered| {
            let limits = limits_for(table(bytes), offered).unwrap();
            (
                limits.max_buffer_size,
                limits.max_storage_buffer_binding_size,
            )
        };
        assert_eq!(asked(200 << 20, &offered), (256 << 20, 200 << 20));
        assert_eq!(asked(300 << 20, &offered), (300 << 20, 300 << 20));
        assert_eq!(asked(600 << 20, &offered), (512 << 20, 512 << 20));
        assert_eq!(asked(600 << 20, &default), (256 << 20, 128 << 20));
    }
}
