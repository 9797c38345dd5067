//! Copies of the rings: on the device, to go back to an earlier turn at the cost of a copy, and to the host, to keep a
//! conversation beyond the device. Only what is used of a ring is copied.
//!
//! It knows nothing of tokens: the caller remembers which ones a copy belongs to.

use moa_mask::{RingLayout, SLACK, memory};

use crate::buffers::{close_scopes, open_scopes};
use crate::engine::Engine;
use crate::error::{EngineError, Result};

/// K and V of every layer as they were, on the same device.
#[derive(Debug)]
pub struct RingCopy {
    /// Each layer's used rows, K before V.
    layers: Vec<wgpu::Buffer>,
    context: u32,
    len: u32,
    longest: u32,
    bytes: u64,
}

impl RingCopy {
    /// Tokens that the cache held.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether the cache was empty.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes on the device.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Gives the memory back without waiting for the last reference to go.
    pub fn destroy(&self) {
        for buffer in &self.layers {
            buffer.destroy();
        }
    }
}

/// Consecutive used rows: where they lie in a layer's K (or V) buffer and in its packed copy, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stretch {
    ring: u64,
    packed: u64,
    bytes: u64,
}

impl Engine {
    /// Copies the used part of every ring on the device.
    pub async fn copy_rings(&self) -> Result<RingCopy> {
        self.landed()?;
        let (len, longest) = self.position();
        let gpu = self.gpu();
        let scopes = open_scopes(gpu);
        let mut encoder = self.encoder();
        let mut bytes = 0;
        let mut layers = Vec::with_capacity(self.setup().masks().layers());
        for layer in 0..self.setup().masks().layers() {
            let half = self.used_bytes(layer, longest)?;
            let buffer = gpu.device().create_buffer(&wgpu::BufferDescriptor {
                label: Some("ring copy"),
                size: 2 * half,
                usage: wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::COPY_SRC,
                mapped_at_creation: false,
            });
            self.pack(&mut encoder, layer, longest, &buffer)?;
            bytes += 2 * half;
            layers.push(buffer);
        }
        let copy = RingCopy {
            layers,
            context: self.setup().context(),
            len,
            longest,
            bytes,
        };
        // Without memory the buffers are invalid, and so is every command that names them.
        let commands = encoder.finish();
        if let Err(error) = close_scopes(scopes, "a copy of the rings", bytes).await {
            copy.destroy();
            return Err(error);
        }
        gpu.queue().submit([commands]);
        gpu.check()?;
        Ok(copy)
    }

    /// Puts the rings back as they were. Afterwards something must be prefilled before the next token can be chosen.
    pub fn restore_rings(&mut self, copy: &RingCopy) -> Result<()> {
        self.landed()?;
        let layers = self.setup().masks().layers();
        if copy.layers.len() != layers || copy.context != self.setup().context() {
            return Err(EngineError::BadArgument {
                what: "the copy of the rings",
                got: format!("{} layers at {}", copy.layers.len(), copy.context),
                expected: "one of this engine",
            });
        }
        let mut encoder = self.encoder();
        for (layer, packed) in copy.layers.iter().enumerate() {
            let half = self.used_bytes(layer, copy.longest)?;
            for stretch in self.stretches(layer, copy.longest)? {
                for (ring, start) in self.rings(layer)?.into_iter().zip([0, half]) {
                    let from = start + stretch.packed;
                    encoder.copy_buffer_to_buffer(packed, from, ring, stretch.ring, stretch.bytes);
                }
            }
        }
        self.gpu().queue().submit([encoder.finish()]);
        self.set_position(copy.len, copy.longest)?;
        self.gpu().check()
    }

    /// The used rows of a layer, K before V, head after head, as they lie in the rings.
    pub async fn save_layer(&self, layer: usize) -> Result<Vec<u8>> {
        self.landed()?;
        let (_, longest) = self.position();
        let bytes = 2 * self.used_bytes(layer, longest)?;
        if bytes == 0 {
            return Ok(Vec::new());
        }
        let gpu = self.gpu();
        let scopes = open_scopes(gpu);
        let staging = gpu.device().create_buffer(&wgpu::BufferDescriptor {
            label: Some("ring staging"),
            size: bytes,
            usage: wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::MAP_READ,
            mapped_at_creation: false,
        });
        let mut encoder = self.encoder();
        self.pack(&mut encoder, layer, longest, &staging)?;
        let commands = encoder.finish();
        close_scopes(scopes, "a layer's keys and values", bytes).await?;
        gpu.queue().submit([commands]);
        let data = gpu.read(&staging, bytes).await;
        staging.destroy();
        data
    }

    /// Puts the rows of a layer back that [`save_layer`](Self::save_layer) gave when the longest that the cache had
    /// been was `longest`. Once every layer is there: [`set_position`](Self::set_position).
    pub fn restore_layer(&mut self, layer: usize, longest: u32, bytes: &[u8]) -> Result<()> {
        self.landed()?;
        self.check_position(0, longest)?;
        let half = self.used_bytes(layer, longest)?;
        if bytes.len() as u64 != 2 * half {
            return Err(EngineError::BadArgument {
                what: "a layer's keys and values",
                got: format!("{} bytes", bytes.len()),
                expected: "as many as were saved",
            });
        }
        // The length was just checked: it fits this machine's memory.
        let (k, v) = bytes.split_at(bytes.len() / 2);
        for stretch in self.stretches(layer, longest)? {
            for (ring, packed) in self.rings(layer)?.into_iter().zip([k, v]) {
                let start = usize::try_from(stretch.packed).unwrap_or(usize::MAX);
                let length = usize::try_from(stretch.bytes).unwrap_or(usize::MAX);
                let rows = packed
                    .get(start..start.saturating_add(length))
                    .unwrap_or_default();
                self.gpu().queue().write_buffer(ring, stretch.ring, rows);
            }
        }
        self.gpu().check()
    }

    fn rings(&self, layer: usize) -> Result<[&wgpu::Buffer; 2]> {
        let (k, v) = self
            .kv_buffers(layer)
            .ok_or_else(|| EngineError::BadArgument {
                what: "layer",
                got: layer.to_string(),
                expected: "a layer of the model",
            })?;
        Ok([k, v])
    }

    /// Where a layer's used rows lie after `longest` tokens: each head's slots from its first on.
    fn stretches(&self, layer: usize, longest: u32) -> Result<Vec<Stretch>> {
        let [k, _] = self.rings(layer)?;
        let context = self.setup().context();
        let masks = self.setup().masks().layer(layer);
        let (offsets, slots) = memory::slot_offsets(masks, context, SLACK);
        let row_bytes = k.size() / u64::from(slots.max(1));
        let mut packed = 0;
        let stretches = masks.iter().zip(offsets).map(|(&mask, offset)| {
            let used = RingLayout::new(mask, context, SLACK).slots().min(longest);
            let stretch = Stretch {
                ring: u64::from(offset) * row_bytes,
                packed,
                bytes: u64::from(used) * row_bytes,
            };
            packed += stretch.bytes;
            stretch
        });
        Ok(stretches.filter(|stretch| stretch.bytes > 0).collect())
    }

    fn used_bytes(&self, layer: usize, longest: u32) -> Result<u64> {
        let stretches = self.stretches(layer, longest)?;
        Ok(stretches.iter().map(|stretch| stretch.bytes).sum())
    }

    /// Copies a layer's used rows into `packed`, K before V.
    fn pack(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        layer: usize,
        longest: u32,
        packed: &wgpu::Buffer,
    ) -> Result<()> {
        let half = self.used_bytes(layer, longest)?;
        for stretch in self.stretches(layer, longest)? {
            for (ring, start) in self.rings(layer)?.into_iter().zip([0, half]) {
                let to = start + stretch.packed;
                encoder.copy_buffer_to_buffer(ring, stretch.ring, packed, to, stretch.bytes);
            }
        }
        Ok(())
    }
}
