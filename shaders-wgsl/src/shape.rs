//! A model's heads, as far as sources depend on them.

use crate::WorkList;

/// The part of a model's shape that is compiled into the attention kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadShape {
    /// Query heads.
    pub heads: u32,
    /// KV heads.
    pub kv_heads: u32,
    /// Channels of a head.
    pub head_dim: u32,
}

/// Shapes at which every variant goes through naga and Tint: groups of 1 to 16 and every class of `head_dim`.
pub const CHECKED_SHAPES: [HeadShape; 7] = [
    HeadShape {
        heads: 9,
        kv_heads: 3,
        head_dim: 64,
    },
    HeadShape {
        heads: 7,
        kv_heads: 1,
        head_dim: 16,
    },
    HeadShape {
        heads: 8,
        kv_heads: 8,
        head_dim: 32,
    },
    HeadShape {
        heads: 32,
        kv_heads: 8,
        head_dim: 128,
    },
    HeadShape {
        heads: 16,
        kv_heads: 1,
        head_dim: 80,
    },
    HeadShape {
        heads: 8,
        kv_heads: 1,
        head_dim: 256,
    },
    HeadShape {
        heads: 8,
        kv_heads: 1,
        head_dim: 8,
    },
];

/// Threads of a workgroup of decode attention.
pub(crate) const DECODE_THREADS: u32 = 128;

/// A head shape for which there is no kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShapeError(pub HeadShape);

impl std::fmt::Display for ShapeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let HeadShape {
            heads,
            kv_heads,
            head_dim,
        } = self.0;
        write!(
            f,
            "{heads} heads on {kv_heads} kv heads of {head_dim} channels: expected whole groups and 8 to 256 channels in steps of 8"
        )
    }
}

impl std::error::Error for ShapeError {}

impl HeadShape {
    /// Refuses shapes that the attention kernels cannot serve.
    pub fn check(self) -> Result<(), ShapeError> {
        let groups =
            self.kv_heads > 0 && self.heads > 0 && self.heads.is_multiple_of(self.kv_heads);
        let channels = (8..=256).contains(&self.head_dim) && self.head_dim.is_multiple_of(8);
        // One entry of the work list for each, at least.
        if groups && channels && self.kv_heads * self.items_per_part() <= WorkList::MOST_ITEMS {
            Ok(())
        } else {
            Err(ShapeError(self))
        }
    }

    /// Query heads to a KV head.
    pub const fn gqa_group(self) -> u32 {
        self.heads / self.kv_heads
    }

    /// Query heads that one workgroup of decode attention serves: of a group of more than four an even part of at most
    /// four, since the registers of more cost more than reading keys twice.
    pub fn heads_per_item(self) -> u32 {
        self.gqa_group().div_ceil(self.items_per_part())
    }

    /// Workgroups of decode attention that share a part of a KV head's keys.
    pub fn items_per_part(self) -> u32 {
        self.gqa_group().div_ceil(4)
    }

    /// Keys that a workgroup of decode attention takes at a time: four of each lane of `head_dim / 8` threads.
    pub fn decode_round(self) -> u32 {
        4 * (DECODE_THREADS / (self.head_dim / 8)).min(16)
    }

    /// Channels of a head that a workgroup of [`Kernel::MergeLse`] joins: few, so that its other threads take many parts.
    pub fn merge_channels(self) -> u32 {
        if self.head_dim.is_multiple_of(16) {
            16
        } else {
            8
        }
    }
}
