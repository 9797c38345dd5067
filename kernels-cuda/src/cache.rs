//! Launchers that put keys and values into sink slots and rings, and read them back by position.

use std::marker::PhantomData;

use cudarc::driver::CudaFunction;

use crate::extent::check_len;
use crate::launch::{self, Arg, Grid};
use crate::slots::{CacheSlots, HeadShape};
use crate::source::{Kernel, KernelConfig};
use crate::{Buffer, CudaError, Element, Gpu, Result};

/// Slots of one layer and the kernels that fill them and read them back, for heads of any even number of channels.
#[derive(Debug)]
pub struct Cache<T> {
    slots: CacheSlots,
    commit: CudaFunction,
    linear: CudaFunction,
    element: PhantomData<T>,
}

impl<T: Element> Cache<T> {
    /// Compiles the kernels for what lies in `slots`.
    ///
    /// # Errors
    /// [`CudaError::Shape`], and those of compiling.
    pub fn new(gpu: &Gpu, slots: CacheSlots) -> Result<Self> {
        let HeadShape {
            kv_heads, head_dim, ..
        } = slots.shape;
        let wrong = |what, expected, got: u32| {
            Err(CudaError::Shape {
                what,
                expected,
                got: got as usize,
            })
        };
        if head_dim == 0 || head_dim > 1024 || !head_dim.is_multiple_of(2) {
            return wrong("head_dim", "even, 2 to 1024", head_dim);
        }
        if kv_heads > 65_535 {
            return wrong("kv_heads", "1 to 65535", kv_heads);
        }
        let element = T::TYPE;
        let module = gpu.module(Kernel::KvCommit, KernelConfig { head_dim, element })?;
        Ok(Self {
            slots,
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
        let requests = self.slots.batch;
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
                Arg::read(stream, &self.slots.spans),
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
        check_len("requests", 1, self.slots.batch)?;
        let rows = self.check(k, v, k_slots, v_slots)? + start as usize;
        let values = rows * self.slots.shape.kv_dim();
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
                Arg::read(stream, &self.slots.spans),
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
        let width = self.slots.shape.kv_dim();
        let values = self.slots.slots * self.slots.shape.head_dim as usize;
        let rows = k.len() / width;
        check_len("k", rows * width, k.len())?;
        check_len("v", k.len(), v.len())?;
        check_len("the slots of keys", values, k_slots.len())?;
        check_len("the slots of values", values, v_slots.len())?;
        Ok(rows)
    }

    fn grid(&self, rows: usize) -> Result<Grid> {
        let kv_heads = self.slots.shape.kv_heads;
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
