//! One layer's caches on the device: whose keys lie in which slots, and the buffers that hold them.
//!
//! Where a key belongs is `moa_mask`'s business; this file checks that slots lie inside their buffers and counts bytes. It
//! deliberately launches nothing.

use bytemuck::cast_slice;
use moa_mask::abi::HeadSpan;
use moa_mask::{HeadMask, KvFormat, RingLayout};

use crate::extent::check_len;
use crate::{Buffer, CudaError, Element, Gpu, Result};

/// One layer's heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadShape {
    /// Query heads.
    pub heads: u32,
    /// KV heads; divides `heads`.
    pub kv_heads: u32,
    /// Channels of a head; engines' kernels know 64 and 128.
    pub head_dim: u32,
}

impl HeadShape {
    /// Query heads that share a KV head.
    pub const fn gqa_group(self) -> u32 {
        self.heads / self.kv_heads
    }

    pub(crate) const fn q_dim(self) -> usize {
        self.heads as usize * self.head_dim as usize
    }

    pub(crate) const fn kv_dim(self) -> usize {
        self.kv_heads as usize * self.head_dim as usize
    }

    /// Refuses heads that engines' kernels do not know.
    pub(crate) fn check_engine(self) -> Result<()> {
        match self.head_dim {
            64 | 128 => Ok(()),
            other => refuse("head_dim", "64 or 128", other as usize),
        }
    }
}

/// One request's cache in a layer's buffers: for each KV head a mask, its ring, and its first slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestSlots {
    /// By KV head.
    pub heads: Vec<(HeadMask, RingLayout, u32)>,
}

/// Where a batch's keys lie in one layer's buffers.
#[derive(Debug)]
pub struct CacheSlots {
    pub(crate) shape: HeadShape,
    pub(crate) batch: usize,
    pub(crate) slots: usize,
    /// [`HeadSpan`] by request and KV head.
    pub(crate) spans: Buffer<u32>,
    /// The most keys that each request's KV heads show a query.
    pub(crate) lengths: Vec<u64>,
}

fn refuse<T>(what: &'static str, expected: &'static str, got: usize) -> Result<T> {
    Err(CudaError::Shape {
        what,
        expected,
        got,
    })
}

impl CacheSlots {
    /// Checks and uploads where the keys of `requests` lie in buffers of `slots` slots.
    ///
    /// # Errors
    /// [`CudaError::Shape`] for heads without a kernel or caches outside the buffers, [`CudaError::Length`], and the driver's.
    pub fn new(
        gpu: &Gpu,
        shape: HeadShape,
        requests: &[RequestSlots],
        slots: usize,
    ) -> Result<Self> {
        if shape.kv_heads == 0 || shape.heads == 0 || !shape.heads.is_multiple_of(shape.kv_heads) {
            return refuse(
                "heads",
                "a multiple of kv_heads, at least 1",
                shape.heads as usize,
            );
        }
        if requests.is_empty() || requests.len() > 65_535 {
            return refuse("batch", "1 to 65535", requests.len());
        }
        let (mut spans, mut lengths) = (Vec::new(), Vec::new());
        for request in requests {
            check_len(
                "a request's heads",
                shape.kv_heads as usize,
                request.heads.len(),
            )?;
            for &(mask, layout, slot_offset) in &request.heads {
                let end = u64::from(slot_offset) + u64::from(layout.sink) + u64::from(layout.ring);
                if end > slots as u64 {
                    return refuse(
                        "a head's last slot",
                        "inside the buffers",
                        usize::try_from(end).unwrap_or(usize::MAX),
                    );
                }
                if layout.slots() == 0 || layout.slots() > 1 << 30 || mask.window == 0 {
                    return refuse(
                        "a head's slots",
                        "1 to 2^30, of a window of at least 1",
                        layout.slots() as usize,
                    );
                }
                spans.push(HeadSpan {
                    sink: layout.sink,
                    // Positions stay far from where u32 wraps around.
                    window: mask.window.min(1 << 30),
                    ring: layout.ring,
                    slot_offset,
                });
                lengths.push(u64::from(mask.window.min(layout.ring)) + u64::from(layout.sink));
            }
        }
        Ok(Self {
            shape,
            batch: requests.len(),
            slots,
            spans: gpu.upload(cast_slice(&spans))?,
            lengths,
        })
    }

    /// Slots in the layer's buffers.
    pub const fn slots(&self) -> usize {
        self.slots
    }
}

/// The K and V of one layer's slots.
#[derive(Debug)]
pub enum KvBuffers<T> {
    /// 16 bits a value.
    Sixteen {
        /// `[slots, head_dim]`.
        k: Buffer<T>,
        /// `[slots, head_dim]`.
        v: Buffer<T>,
    },
    /// Signed bytes: a row's values are its bytes times its scale.
    Int8 {
        /// `[slots, head_dim]`.
        k: Buffer<i8>,
        /// `[slots, head_dim]`.
        v: Buffer<i8>,
        /// `[slots]` of K's and V's scale.
        scales: Buffer<f32>,
    },
}

impl<T: Element> KvBuffers<T> {
    /// Zeros.
    ///
    /// # Errors
    /// [`CudaError::OutOfMemory`] and the driver's others.
    pub fn zeros(gpu: &Gpu, format: KvFormat, slots: usize, head_dim: u32) -> Result<Self> {
        let values = slots * head_dim as usize;
        Ok(match format {
            KvFormat::Sixteen => Self::Sixteen {
                k: gpu.zeros(values)?,
                v: gpu.zeros(values)?,
            },
            KvFormat::Int8 => Self::Int8 {
                k: gpu.zeros(values)?,
                v: gpu.zeros(values)?,
                scales: gpu.zeros(slots * 2)?,
            },
        })
    }

    /// How rows are kept.
    pub const fn format(&self) -> KvFormat {
        match self {
            Self::Sixteen { .. } => KvFormat::Sixteen,
            Self::Int8 { .. } => KvFormat::Int8,
        }
    }

    /// Bytes allocated.
    pub fn bytes(&self) -> u64 {
        let bytes = match self {
            Self::Sixteen { k, v } => (k.len() + v.len()) * size_of::<T>(),
            Self::Int8 { k, v, scales } => k.len() + v.len() + scales.len() * size_of::<f32>(),
        };
        bytes as u64
    }

    pub(crate) fn check(&self, format: KvFormat, slots: usize, head_dim: u32) -> Result<()> {
        if self.format() != format {
            return refuse(
                "bits of a cached value",
                "those that the kernel was made for",
                usize::try_from(8 * self.format().row_bytes(head_dim) / u64::from(head_dim))
                    .unwrap_or(0),
            );
        }
        let values = slots * head_dim as usize;
        let (k, v) = match self {
            Self::Sixteen { k, v } => (k.len(), v.len()),
            Self::Int8 { k, v, scales } => {
                check_len("the scales", slots * 2, scales.len())?;
                (k.len(), v.len())
            }
        };
        check_len("cached k", values, k)?;
        check_len("cached v", values, v)
    }
}
