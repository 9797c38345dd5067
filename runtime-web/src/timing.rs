//! Single kernels timed by the device's own clock, for benches. Timestamps between dispatches cost time themselves:
//! the sum over kernels is more than a token takes, and both are reported.

use std::collections::BTreeMap;

use crate::engine::Engine;
use crate::error::{EngineError, Result};
use crate::gpu::Gpu;
use crate::program::Step;

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
    /// Decodes `tokens` tokens greedily, each dispatch timed. The engine must have been made with timestamps.
    pub async fn time_kernels(&mut self, tokens: u32) -> Result<Vec<KernelTime>> {
        let mut samples: BTreeMap<String, (u32, u64, Vec<f64>)> = BTreeMap::new();
        for _ in 0..tokens.max(1) {
            self.ready()?;
            self.landed()?;
            if self.pending.is_none() {
                return Err(EngineError::NoLogits);
            }
            self.check_room(1)?;
            self.feed_pending();
            let steps: Vec<&Step> = self.program.token().chain([&self.program.argmax]).collect();
            let count = u32::try_from(steps.len()).unwrap_or(u32::MAX - 1) + 1;
            let times = self
                .gpu
                .timestamps(count, |pass, queries| {
                    pass.write_timestamp(queries, 0);
                    for (index, step) in (1..).zip(&steps) {
                        step.encode(pass, 1);
                        pass.write_timestamp(queries, index);
                    }
                })
                .await?;
            let mut own: BTreeMap<&str, (u32, u64, f64)> = BTreeMap::new();
            let mut layer = 0;
            for (step, time) in steps.iter().zip(times.windows(2)) {
                let (dispatches, bytes, secs) = own.entry(&step.label).or_default();
                *dispatches += 1;
                *secs += time[1] - time[0];
                *bytes += step.weight_bytes;
                if step.label == "attention_decode" {
                    *bytes += self.setup.visible_bytes(layer, self.len + 1);
                    layer += 1;
                }
            }
            for (label, (dispatches, bytes, secs)) in own {
                let sample = samples.entry(label.to_owned()).or_default();
                (sample.0, sample.1) = (dispatches, bytes);
                sample.2.push(secs);
            }
            self.advance(1);
            self.has_logits = true;
        }
        self.forget_from(self.len);
        let mut list: Vec<KernelTime> = samples
            .into_iter()
            .map(|(kernel, (dispatches, bytes, mut secs))| {
                secs.sort_by(f64::total_cmp);
                KernelTime {
                    kernel,
                    dispatches,
                    secs: secs[secs.len() / 2],
                    bytes,
                }
            })
            .collect();
        list.sort_by(|a, b| b.secs.total_cmp(&a.secs));
        Ok(list)
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
        self.history.resize(len as usize, 0);
        self.prompt_len = self.history.len();
        self.len = len;
        self.longest = self.longest.max(len);
        Ok(())
    }
}
