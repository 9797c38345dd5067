//! Exact bytes of a KV cache: what the engine will allocate, known before a single weight is downloaded.

use crate::{HeadMask, MaskError, ModelMasks, Result, RingLayout};

/// Tokens that may be decoded ahead and taken back exactly: stop strings, abort, a broken-off stream.
pub const SLACK: u32 = 64;

/// Tokens of a prefill chunk in the runtime: what its K and V scratch holds, and so part of every memory figure.
pub const PREFILL_CHUNK: u32 = 256;

/// The part of a model's shape that decides its KV cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvShape {
    /// Transformer layers.
    pub layers: u32,
    /// KV heads in each layer.
    pub kv_heads: u32,
    /// Channels of a head.
    pub head_dim: u32,
}

/// How an engine on a GPU keeps the K and V rows of its caches.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KvFormat {
    /// 16 bits a value.
    #[default]
    Sixteen,
    /// A signed byte a value, and an f32 scale a row.
    Int8,
}

impl KvFormat {
    /// Bytes of the K or the V of one token in one head.
    pub const fn row_bytes(self, head_dim: u32) -> u64 {
        match self {
            Self::Sixteen => 2 * head_dim as u64,
            Self::Int8 => head_dim as u64 + 4,
        }
    }
}

/// Bytes of one engine's KV memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvBytes {
    /// Sink and ring slots of every head, slack included: K and V.
    pub cache: u64,
    /// K and V of the chunk in flight during prefill, shared by all layers.
    pub scratch: u64,
}

impl KvBytes {
    /// Cache and scratch.
    pub const fn total(self) -> u64 {
        self.cache + self.scratch
    }
}

impl KvShape {
    /// Checks that no count is zero and that `head_dim` is even (two f16 values share a u32).
    pub fn check(self) -> Result<()> {
        for (what, got) in [
            ("layers", self.layers),
            ("kv_heads", self.kv_heads),
            ("head_dim", self.head_dim),
        ] {
            if got == 0 {
                return Err(MaskError::BadShape {
                    what,
                    got: 0,
                    expected: "at least 1",
                });
            }
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(MaskError::BadShape {
                what: "head_dim",
                got: u64::from(self.head_dim),
                expected: "an even number",
            });
        }
        Ok(())
    }

    /// Bytes of the K and V of one token in one head, with `value_bytes` a value (2 for f16).
    pub const fn slot_bytes(self, value_bytes: u64) -> u64 {
        2 * self.head_dim as u64 * value_bytes
    }

    /// Bytes for `masks` at a declared context length, prefilled in chunks of at most `chunk` tokens.
    ///
    /// `value_bytes` is the size of a cached value: 2 for f16.
    pub fn kv_bytes(
        self,
        masks: &ModelMasks,
        context: u32,
        chunk: u32,
        value_bytes: u64,
    ) -> Result<KvBytes> {
        let slots = self.layer_slots(masks, context)?.sum();
        let chunk = u64::from(chunk.min(context)) * u64::from(self.kv_heads);
        let slot = self.slot_bytes(value_bytes);
        counted(context, (slots, slot), (chunk, slot))
    }

    /// One request's slots in each layer, slack included.
    fn layer_slots(self, masks: &ModelMasks, context: u32) -> Result<impl Iterator<Item = u64>> {
        self.check()?;
        masks.check_shape(self.layers as usize, self.kv_heads as usize)?;
        if context == 0 {
            return Err(MaskError::BadContext { got: 0 });
        }
        let slots = move |mask: &HeadMask| RingLayout::new(*mask, context, SLACK).slots();
        let layers = (0..masks.layers()).map(|layer| masks.layer(layer));
        Ok(layers.map(move |layer| layer.iter().map(|mask| u64::from(slots(mask))).sum()))
    }

    /// Bytes of the browser engine: caches in `format`, a chunk in flight in 16 bits, prefill reading the caches as they are.
    pub fn format_bytes(
        self,
        masks: &ModelMasks,
        context: u32,
        chunk: u32,
        format: KvFormat,
    ) -> Result<KvBytes> {
        let sixteen = KvFormat::Sixteen.row_bytes(self.head_dim);
        let KvBytes { cache, scratch } = self.kv_bytes(masks, context, chunk, 2)?;
        Ok(KvBytes {
            cache: cache / sixteen * format.row_bytes(self.head_dim),
            scratch,
        })
    }

    /// Bytes of an engine that serves `batch` requests of the same declared context length at once.
    ///
    /// Chunks of at most `chunk` tokens, of all requests together, lie in 16 bits, shared by all layers. Where caches are bytes,
    /// prefill reads them from a copy in 16 bits of the layer that has most slots, which is scratch too.
    pub fn batch_bytes(
        self,
        masks: &ModelMasks,
        context: u32,
        batch: u32,
        chunk: u32,
        format: KvFormat,
    ) -> Result<KvBytes> {
        let (mut all, mut most) = (0, 0);
        for slots in self.layer_slots(masks, context)? {
            let slots = slots.saturating_mul(u64::from(batch));
            (all, most) = (slots.saturating_add(all), slots.max(most));
        }
        let copied = match format {
            KvFormat::Sixteen => 0,
            KvFormat::Int8 => most,
        };
        let chunk = u64::from(chunk) * u64::from(self.kv_heads);
        let slot = |format: KvFormat| 2 * format.row_bytes(self.head_dim);
        counted(
            context,
            (all, slot(format)),
            (chunk.saturating_add(copied), slot(KvFormat::Sixteen)),
        )
    }

    /// Bytes of a dense cache of exactly `context` tokens, without slack or scratch: what everybody else pays.
    pub fn dense_bytes(self, context: u32, value_bytes: u64) -> u64 {
        u64::from(self.layers)
            * u64::from(self.kv_heads)
            * u64::from(context)
            * self.slot_bytes(value_bytes)
    }
}

/// Bytes of a cache and of its scratch, each of so many slots of so many bytes.
fn counted(context: u32, cache: (u64, u64), scratch: (u64, u64)) -> Result<KvBytes> {
    match (
        cache.0.checked_mul(cache.1),
        scratch.0.checked_mul(scratch.1),
    ) {
        (Some(cache), Some(scratch)) => Ok(KvBytes { cache, scratch }),
        _ => Err(MaskError::BadContext {
            got: u64::from(context),
        }),
    }
}

/// First slot of each KV head of a layer in the layer's K (or V) buffer, and the layer's slots in all: the
/// layout that the runtime allocates and that [`KvShape::kv_bytes`] counts.
pub fn slot_offsets(layer: &[HeadMask], context: u32, slack: u32) -> (Vec<u32>, u32) {
    let mut offsets = Vec::with_capacity(layer.len());
    let mut next = 0;
    for &mask in layer {
        offsets.push(next);
        next += RingLayout::new(mask, context, slack).slots();
    }
    (offsets, next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_count_sinks_rings_slack_and_scratch() {
        let shape = KvShape {
            layers: 2,
            kv_heads: 3,
            head_dim: 64,
        };
        let masks = ModelMasks::uniform(2, 3, HeadMask::from_span(1024, 64));
        let bytes = shape.kv_bytes(&masks, 8192, 256, 2).unwrap();
        assert_eq!(bytes.cache, 6 * (1024 + 64) * 2 * 64 * 2);
        assert_eq!(bytes.scratch, 256 * 3 * 2 * 64 * 2);
        let dense = shape
            .kv_bytes(&ModelMasks::dense(2, 3), 8192, 0, 2)
            .unwrap();
        assert_eq!(
            dense.cache,
            shape.dense_bytes(8192, 2),
            "no more than the context in all"
        );
        assert!(
            shape
                .kv_bytes(&ModelMasks::dense(2, 2), 8192, 0, 2)
                .is_err()
        );
        assert!(
            KvShape {
                head_dim: 7,
                ..shape
            }
            .check()
            .is_err()
        );
    }

    #[test]
    fn a_batch_counts_every_request_and_one_chunk() {
        let shape = KvShape {
            layers: 2,
            kv_heads: 3,
            head_dim: 64,
        };
        let masks = ModelMasks::uniform(2, 3, HeadMask::from_span(1024, 64));
        let bytes = |format| shape.batch_bytes(&masks, 8192, 5, 2048, format).unwrap();
        let (slots, chunk) = (6 * (1024 + 64), 2048 * 3 * 2 * 64 * 2);
        let sixteen = bytes(KvFormat::Sixteen);
        assert_eq!(sixteen.cache, 5 * slots * 2 * 64 * 2);
        assert_eq!(sixteen.scratch, chunk);
        let int8 = bytes(KvFormat::Int8);
        assert_eq!(int8.cache, 5 * slots * 2 * (64 + 4));
        assert_eq!(int8.scratch, chunk + 5 * slots / 2 * 2 * 64 * 2);
        assert!(shape.batch_bytes(&masks, 0, 5, 64, KvFormat::Int8).is_err());
    }

    #[test]
    fn an_engine_in_bytes_keeps_its_chunk_in_sixteen_bits() {
        let shape = KvShape {
            layers: 2,
            kv_heads: 3,
            head_dim: 64,
        };
        let masks = ModelMasks::uniform(2, 3, HeadMask::from_span(1024, 64));
        let bytes = |format| shape.format_bytes(&masks, 8192, 256, format).unwrap();
        let sixteen = bytes(KvFormat::Sixteen);
        assert_eq!(sixteen, shape.kv_bytes(&masks, 8192, 256, 2).unwrap());
        let int8 = bytes(KvFormat::Int8);
        assert_eq!(int8.cache, 6 * (1024 + 64) * 2 * (64 + 4));
        assert_eq!(int8.scratch, sixteen.scratch);
    }

    #[test]
    fn offsets_tile_the_layer() {
        let layer = [HeadMask::from_span(128, 64), HeadMask::DENSE];
        assert_eq!(slot_offsets(&layer, 1000, 64), (vec![0, 192], 1192));
    }
}
