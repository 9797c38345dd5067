//! Single kernels timed by the device's own clock, for benches. A timestamp costs as much as several dispatches, so
//! they stand around all dispatches of a kernel, which depend on each other as they do in a token.

use std::collections::BTreeMap;

use crate::engine::Engine;
use crate::error::{EngineError, Result};
use crate::gpu::Gpu;
use crate::step::Step;

/// Dispatches beside which two timestamps cost little, and no more tokens chosen than there is room for.
const MANY_DISPATCHES: usize = 32;

/// Tokens between two timestamps, where there is room for them.
const TIMED_TOKENS: u32 = 16;

/// One kernel of a decoded token, all its dispatches together.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct KernelTime {
    /// Stem and variant.
    pub kernel: String,
    /// Dispatches in a token.
    pub dispatches: u32,
    /// Seconds in a token: the median over repetitions.
    pub secs: f64,
    /// Bytes that cannot be avoided: weights, or visible keys and values.
    pub bytes: u64,
}

impl Gpu {
    /// Seconds that the device takes for the commands that `encode` writes, in a pass of their own.
    pub(crate) async fn time(
        &self,
        encode: impl FnOnce(&mut wgpu::ComputePass<'_>),
    ) -> Result<f64> {
        let times = self.timestamps(2, |pass, queries| {
            pass.write_timestamp(queries, 0);
            encode(pass);
            pass.write_timestamp(queries, 1);
        });
        let times = times.await?;
        Ok(times[1] - times[0])
    }

    /// Seconds at the timestamps that `encode` writes into the query set, all of them.
    async fn timestamps(
        &self,
        count: u32,
        encode: impl FnOnce(&mut wgpu::ComputePass<'_>, &wgpu::QuerySet),
    ) -> Result<Vec<f64>> {
        let queries = self.device.create_query_set(&wgpu::QuerySetDescriptor {
            label: Some("timestamps"),
            ty: wgpu::QueryType::Timestamp,
            count,
        });
        let bytes = u64::from(count) * 8;
        let buffer = |usage| {
            self.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("timestamps"),
                size: bytes,
                usage,
                mapped_at_creation: false,
            })
        };
        let resolved = buffer(wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC);
        let staging = buffer(wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST);
        let mut encoder = self
            .device
            .create_command_encoder(&wgpu::CommandEncoderDescriptor {
                label: Some("timed"),
            });
        {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            encode(&mut pass, &queries);
        }
        encoder.resolve_query_set(&queries, 0..count, &resolved, 0);
        encoder.copy_buffer_to_buffer(&resolved, 0, &staging, 0, bytes);
        self.queue.submit([encoder.finish()]);
        let data = self.read(&staging, bytes).await?;
        let period = f64::from(self.queue.get_timestamp_period()) * 1e-9;
        let ticks: Vec<u64> = bytemuck::pod_collect_to_vec(&data);
        let first = ticks.first().copied().unwrap_or(0);
        #[expect(clippy::cast_precision_loss, reason = "a few seconds in nanoseconds")]
        let secs = |tick: u64| tick.wrapping_sub(first) as f64 * period;
        Ok(ticks.into_iter().map(secs).collect())
    }
}

impl Engine {
    /// Times every kernel of a decoded token: all its dispatches, of all layers, one after the other between two
    /// timestamps, `repetitions` times. What is computed is of no use: reset the engine afterwards. It must have been
    /// made with timestamps, and something must have been prefilled.
    pub async fn time_kernels(&mut self, repetitions: u32) -> Result<Vec<KernelTime>> {
        self.ready()?;
        self.landed()?;
        self.check_room(1)?;
        let mut kernels: BTreeMap<&str, (Vec<&Step>, u64)> = BTreeMap::new();
        let mut layer = 0;
        for step in self.program.token().chain(&self.program.argmax) {
            let (steps, bytes) = kernels.entry(&step.label).or_default();
            steps.push(step);
            *bytes += step.weight_bytes;
            if step.label.starts_with("attention_decode") {
                *bytes += self.setup.visible_bytes(layer, self.len + 1);
                layer += 1;
            }
        }
        let mut list = Vec::new();
        for (label, (steps, bytes)) in kernels {
            let mut secs = Vec::new();
            // What reads nothing to speak of is done again and again, so that little of the timestamps is left in it.
            let times = if bytes == 0 {
                MANY_DISPATCHES.div_ceil(steps.len())
            } else {
                1
            };
            for _ in 0..repetitions.max(1) {
                self.write_state(1);
                let encode = |pass: &mut wgpu::ComputePass<'_>| {
                    for step in steps.iter().cycle().take(times * steps.len()) {
                        step.encode(pass, 1);
                    }
                };
                #[expect(clippy::cast_precision_loss, reason = "a small number")]
                let each = 1.0 / times as f64;
                secs.push(each * self.gpu.time(encode).await?);
            }
            secs.sort_by(f64::total_cmp);
            list.push(KernelTime {
                kernel: label.to_owned(),
                dispatches: u32::try_from(steps.len()).unwrap_or(u32::MAX),
                secs: secs[secs.len() / 2],
                bytes,
            });
        }
        list.sort_by(|a, b| b.secs.total_cmp(&a.secs));
        Ok(list)
    }

    /// Seconds of a whole decoded token, chosen greedily: one after the other, as a batch has them, between two
    /// timestamps; the median of `repetitions`. The same conditions as for [`Engine::time_kernels`].
    pub async fn time_token(&mut self, repetitions: u32) -> Result<f64> {
        self.ready()?;
        self.landed()?;
        self.check_room(1)?;
        let tokens = TIMED_TOKENS.min(self.setup.context() - self.len);
        let mut secs = Vec::new();
        for _ in 0..repetitions.max(1) {
            self.write_state(1);
            let encode = |pass: &mut wgpu::ComputePass<'_>| {
                for _ in 0..tokens {
                    for step in self.program.token().chain(&self.program.argmax) {
                        step.encode(pass, 1);
                    }
                }
            };
            secs.push(self.gpu.time(encode).await? / f64::from(tokens));
        }
        secs.sort_by(f64::total_cmp);
        Ok(secs[secs.len() / 2])
    }

    /// Pretends that `len` tokens are in the cache, whatever it holds: what decoding costs does not depend on the
    /// contents. For benches at depths that would take minutes to prefill. Needs logits of some token before.
    pub fn assume_len(&mut self, len: u32) -> Result<()> {
        self.landed()?;
        if len > self.setup.context() {
            return Err(EngineError::ContextOverflow {
                len: 0,
                more: len as usize,
                context: self.setup.context(),
            });
        }
        self.forget_from(self.len);
        self.hold_unknown(len);
        self.longest = self.longest.max(len);
        Ok(())
    }
}
