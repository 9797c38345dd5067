//! Launchers that put keys and values into sink slots and rings, and read them back by position.

use std::marker::PhantomData;

use cudarc::driver::CudaFunction;
use moa_mask::{HeadMask, RingLayout};

use crate::extent::check_len;
use crate::launch::{self, Arg, Grid};
use crate::source::{Kernel, KernelConfig};
use crate::{Buffer, CudaError, Element, Gpu, Result};

/// One layer's caches: each request's KV heads, one after another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheShape {
    /// Requests.
    pub requests: usize,
    /// KV heads of each.
    pub kv_heads: usize,
    /// Channels of a head, even.
    pub head_dim: usize,
    /// Slots in all.
    pub slots: usize,
}

/// Slots of one layer and the kernels that fill them.
#[derive(Debug)]
pub struct Cache<T> {
    shape: CacheShape,
    spans: Buffer<u32>,
    commit: CudaFunction,
    linear: CudaFunction,
    element: PhantomData<T>,
}

impl<T: Element> Cache<T> {
    /// `heads` gives mask, layout and first slot of each KV head, request by request.
    ///
    /// # Errors
    /// [`CudaError::Length`], [`CudaError::Shape`], and those of compiling and allocating.
    pub fn new(
        gpu: &Gpu,
        shape: CacheShape,
        heads: &[(HeadMask, RingLayout, u32)],
    ) -> Result<Self> {
        check_len("heads", shape.requests * shape.kv_heads, heads.len())?;
        let wrong = |what, expected, got| {
            Err(CudaError::Shape {
                what,
                expected,
                got,
            })
        };
        if shape.head_dim == 0 || shape.head_dim > 1024 || !shape.head_dim.is_multiple_of(2) {
            return wrong("head_dim", "even, 2 to 1024", shape.head_dim);
        }
        if shape.kv_heads == 0 || shape.kv_heads > 65_535 {
            return wrong("kv_heads", "1 to 65535", shape.kv_heads);
        }
        let ends = heads
            .iter()
            .map(|(_, layout, first)| *first as usize + layout.slots() as usize);
        if let Some(end) = ends.max().filter(|&end| end > shape.slots) {
            return wrong("a head's last slot", "within the buffer", end);
        }
        let limit = 1 << 30; // positions stay far from where u32 wraps around
        let spans: Vec<u32> = heads
            .iter()
            .flat_map(|(mask, layout, first)| {
                [
                    layout.sink,
                    mask.window.clamp(1, limit),
                    layout.ring,
                    *first,
                ]
            })
            .collect();
        let module = gpu.module(
            Kernel::KvCommit,
            KernelConfig {
                head_dim: u32::try_from(shape.head_dim).unwrap_or(u32::MAX),
                element: T::TYPE,
            },
        )?;
        Ok(Self {
            shape,
            spans: gpu.upload(&spans)?,
            commit: launch::function(&module, "kv_commit", 0)?,
            linear: launch::function(&module, "kv_linear", 0)?,
            element: PhantomData,
        })
    }

    /// Writes the rows of `k` and `v` `[requests, rows, kv_heads, head_dim]` that stay to their slots; `starts` has the position of each request's
    /// first row.
    ///
    /// # Errors
    /// [`CudaError::Length`], [`CudaError::Shape`] and the driver's.
    pub fn commit(
        &self,
        gpu: &Gpu,
        (k, v): (&Buffer<T>, &Buffer<T>),
        starts: &Buffer<u32>,
        (k_slots, v_slots): (&mut Buffer<T>, &mut Buffer<T>),
    ) -> Result<()> {
        let CacheShape { requests, .. } = self.shape;
        check_len("starts", requests, starts.len())?;
        let rows = self.check(k, v, k_slots, v_slots)?;
        check_len("rows", rows / requests * requests, rows)?;
        let stream = gpu.stream();
        launch::launch(
            stream,
            &self.commit,
            "launching kv_commit",
            self.grid(rows)?,
            &[
                Arg::read(stream, k),
                Arg::read(stream, v),
                Arg::write(stream, k_slots),
                Arg::write(stream, v_slots),
                Arg::read(stream, &self.spans),
                Arg::read(stream, starts),
                Arg::U32(u32::try_from(rows / requests).unwrap_or(u32::MAX)),
            ],
        )
    }

    /// Keys and values by position, `[start + rows, kv_heads, head_dim]`: those of the only request's past that queries from `start` on see, zeros where
    /// they see none, then `k` and `v`.
    ///
    /// # Errors
    /// [`CudaError::Length`], [`CudaError::Shape`] and the driver's.
    pub fn linear(
        &self,
        gpu: &Gpu,
        (k, v): (&Buffer<T>, &Buffer<T>),
        start: u32,
        (k_slots, v_slots): (&Buffer<T>, &Buffer<T>),
        (k_out, v_out): (&mut Buffer<T>, &mut Buffer<T>),
    ) -> Result<()> {
        check_len("requests", 1, self.shape.requests)?;
        let rows = self.check(k, v, k_slots, v_slots)? + start as usize;
        let values = rows * self.shape.kv_heads * self.shape.head_dim;
        check_len("the linear keys", values, k_out.len())?;
        check_len("the linear values", values, v_out.len())?;
        let stream = gpu.stream();
        launch::launch(
            stream,
            &self.linear,
            "launching kv_linear",
            self.grid(rows)?,
            &[
                Arg::read(stream, k),
                Arg::read(stream, v),
                Arg::read(stream, k_slots),
                Arg::read(stream, v_slots),
                Arg::write(stream, k_out),
                Arg::write(stream, v_out),
                Arg::read(stream, &self.spans),
                Arg::U32(start),
            ],
        )
    }

    /// The number of rows in `k` and `v`.
    fn check(
        &self,
        k: &Buffer<T>,
        v: &Buffer<T>,
        k_slots: &Buffer<T>,
        v_slots: &Buffer<T>,
    ) -> Result<usize> {
        let CacheShape {
            kv_heads,
            head_dim,
            slots,
            ..
        } = self.shape;
        let rows = k.len() / (kv_heads * head_dim);
        check_len("k", rows * kv_heads * head_dim, k.len())?;
        check_len("v", k.len(), v.len())?;
        check_len("the slots of keys", slots * head_dim, k_slots.len())?;
        check_len("the slots of values", slots * head_dim, v_slots.len())?;
        Ok(rows)
    }

    fn grid(&self, rows: usize) -> Result<Grid> {
        let kv_heads = u32::try_from(self.shape.kv_heads).unwrap_or(u32::MAX);
        match u32::try_from(rows) {
            Ok(rows) if (1..1 << 31).contains(&rows) => Ok(Grid {
                blocks: (rows, kv_heads),
                threads: 64,
                shared_bytes: 0,
            }),
            _ => Err(CudaError::Shape {
                what: "rows",
                expected: "1 to 2^31 - 1",
                got: rows,
            }),
        }
    }
}
