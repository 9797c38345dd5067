//! How a tensor of heads lies in memory.

use crate::{CudaError, Result};

/// Which dimension comes first. Channels are always the last, and there are no gaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Layout {
    /// `[heads, len, head_dim]`.
    HeadsFirst,
    /// `[len, heads, head_dim]`, as a projection leaves it.
    TokensFirst,
}

/// Sizes of a tensor of heads.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Extent {
    pub(crate) heads: u32,
    pub(crate) len: u32,
    pub(crate) head_dim: u32,
    pub(crate) layout: Layout,
}

impl Extent {
    /// Elements from a row of a head to its next.
    pub(crate) const fn row_stride(self) -> u32 {
        match self.layout {
            Layout::HeadsFirst => self.head_dim,
            Layout::TokensFirst => self.head_dim * self.heads,
        }
    }

    /// Elements from a head's row to the next head's.
    pub(crate) const fn head_stride(self) -> u32 {
        match self.layout {
            Layout::HeadsFirst => self.head_dim * self.len,
            Layout::TokensFirst => self.head_dim,
        }
    }

    /// Elements in all.
    pub(crate) const fn elements(self) -> usize {
        self.heads as usize * self.len as usize * self.head_dim as usize
    }

    /// Values of `[heads, rows]`, rows rounded up to a multiple of 64, as statistics of rows are kept.
    pub(crate) const fn row_values(self) -> usize {
        self.heads as usize * self.len.next_multiple_of(64) as usize
    }

    /// Refuses what no kernel serves.
    pub(crate) fn check(self, kv_heads: u32) -> Result<()> {
        let shape = |what, expected, got: u32| {
            Err(CudaError::Shape {
                what,
                expected,
                got: got as usize,
            })
        };
        if kv_heads == 0 || self.heads == 0 || !self.heads.is_multiple_of(kv_heads) {
            return shape("heads", "a multiple of kv_heads, at least 1", self.heads);
        }
        if self.heads > 65_535 {
            return shape("heads", "at most 65535", self.heads);
        }
        if self.head_dim == 0 || self.head_dim > 128 || !self.head_dim.is_multiple_of(16) {
            return shape("head_dim", "a multiple of 16, at most 128", self.head_dim);
        }
        if self.len == 0 || self.len > 1 << 20 {
            return shape("len", "1 to 1048576", self.len);
        }
        let stride = u64::from(self.head_dim) * u64::from(self.len).max(u64::from(self.heads));
        if stride > u64::from(u32::MAX) {
            return shape("len", "a head of fewer than 2^32 elements", self.len);
        }
        Ok(())
    }
}

/// Refuses a buffer of another size than expected.
pub(crate) fn check_len(what: &'static str, expected: usize, got: usize) -> Result<()> {
    if expected == got {
        Ok(())
    } else {
        Err(CudaError::Length {
            what,
            expected,
            got,
        })
    }
}
