//! The CPU as a device: `gemm` for products, vectorised loops for the rest, rayon for threads.
//!
//! Memory is linear in length: attention holds scores of one tile of rows per thread. Results do not depend on
//! the number of threads.

mod attention;
mod attention_backward;
mod cross_entropy;
mod gemm;
mod influence;
mod rows;
mod simd;
#[cfg(test)]
mod tests;

use moa_mask::HeadMask;
use rayon::prelude::*;

use self::gemm::{Matrix, MatrixMut, Store, Threads};
use crate::{
    Attended, AttentionBackward, AttentionGradients, AttentionShape, Device, Keep, KvCache, Linear,
    Projected, Result, RopeTable, Turn,
};

/// The machine that this runs on. Threads are those of the current rayon pool.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cpu;

impl Device for Cpu {
    type Buffer = Vec<f32>;

    fn label(&self) -> String {
        format!("CPU, {} threads", rayon::current_num_threads())
    }

    fn upload(&self, values: Vec<f32>) -> Result<Vec<f32>> {
        Ok(values)
    }

    fn download(&self, buffer: &Vec<f32>) -> Result<Vec<f32>> {
        Ok(buffer.clone())
    }

    fn len(&self, buffer: &Vec<f32>) -> usize {
        buffer.len()
    }

    fn copy(&self, buffer: &Vec<f32>) -> Result<Vec<f32>> {
        Ok(buffer.clone())
    }

    fn zeros(&self, len: usize, _keep: Keep) -> Result<Vec<f32>> {
        Ok(vec![0.0; len])
    }

    fn gather_rows(&self, table: &Vec<f32>, dim: usize, rows: &[u32]) -> Result<Vec<f32>> {
        let mut values = Vec::with_capacity(rows.len() * dim);
        for &row in rows {
            values.extend_from_slice(&table[row as usize * dim..][..dim]);
        }
        Ok(values)
    }

    fn scatter_rows(
        &self,
        values: &Vec<f32>,
        dim: usize,
        rows: &[u32],
        into: &mut Vec<f32>,
    ) -> Result<()> {
        for (&row, values) in rows.iter().zip(values.chunks_exact(dim)) {
            into[row as usize * dim..][..dim].copy_from_slice(values);
        }
        Ok(())
    }

    fn matmul(
        &self,
        x: &Vec<f32>,
        linear: &Linear<Vec<f32>>,
        addend: Option<Vec<f32>>,
        _keep: Keep,
    ) -> Result<Vec<f32>> {
        let Linear {
            inputs, outputs, ..
        } = *linear;
        let rows = x.len() / inputs;
        let (mut y, store) = start(rows * outputs, addend);
        let weight = Matrix::new(&linear.weight, outputs, inputs, inputs);
        let product = MatrixMut::new(&mut y, rows, outputs, outputs);
        gemm::gemm(
            product,
            store,
            Matrix::new(x, rows, inputs, inputs),
            weight.t(),
            1.0,
            Threads::All,
        );
        if let Some(bias) = &linear.bias {
            y.par_chunks_mut(outputs).for_each(|row| {
                for (y, bias) in row.iter_mut().zip(bias) {
                    *y += bias;
                }
            });
        }
        Ok(y)
    }

    fn matmul_backward(
        &self,
        d_y: &Vec<f32>,
        linear: &Linear<Vec<f32>>,
        addend: Option<Vec<f32>>,
        _keep: Keep,
    ) -> Result<Vec<f32>> {
        let Linear {
            inputs, outputs, ..
        } = *linear;
        let rows = d_y.len() / outputs;
        let (mut d_x, store) = start(rows * inputs, addend);
        let weight = Matrix::new(&linear.weight, outputs, inputs, inputs);
        let product = MatrixMut::new(&mut d_x, rows, inputs, inputs);
        gemm::gemm(
            product,
            store,
            Matrix::new(d_y, rows, outputs, outputs),
            weight,
            1.0,
            Threads::All,
        );
        Ok(d_x)
    }

    fn rms_norm(&self, x: &Vec<f32>, weight: &Vec<f32>, eps: f64) -> Result<Vec<f32>> {
        Ok(rows::rms_norm(x, weight, eps))
    }

    fn rms_norm_backward(
        &self,
        x: &Vec<f32>,
        weight: &Vec<f32>,
        d_y: &Vec<f32>,
        eps: f64,
        addend: Option<Vec<f32>>,
    ) -> Result<Vec<f32>> {
        let mut d_x = addend.unwrap_or_else(|| vec![0.0; x.len()]);
        rows::rms_norm_backward(x, weight, d_y, eps, &mut d_x);
        Ok(d_x)
    }

    fn rope(
        &self,
        x: &mut Vec<f32>,
        heads: usize,
        table: &RopeTable<Vec<f32>>,
        turn: Turn,
    ) -> Result<()> {
        rows::rope(x, heads, table.head_dim, &table.cos, &table.sin, turn);
        Ok(())
    }

    fn swiglu(&self, gate: &Vec<f32>, up: &Vec<f32>) -> Result<Vec<f32>> {
        Ok(rows::swiglu(gate, up))
    }

    fn swiglu_backward(
        &self,
        mut gate: Vec<f32>,
        mut up: Vec<f32>,
        d_y: &Vec<f32>,
    ) -> Result<(Vec<f32>, Vec<f32>)> {
        rows::swiglu_backward(&mut gate, &mut up, d_y);
        Ok((gate, up))
    }

    fn attention(
        &self,
        shape: AttentionShape,
        projected: &Projected<'_, Vec<f32>>,
        masks: &[HeadMask],
        cache: Option<&KvCache<Vec<f32>>>,
    ) -> Result<Attended<Vec<f32>>> {
        let (o, lse) = attention::attention(shape, projected, masks, cache);
        Ok(Attended { o, lse })
    }

    fn commit(
        &self,
        shape: AttentionShape,
        projected: &Projected<'_, Vec<f32>>,
        cache: &mut KvCache<Vec<f32>>,
    ) -> Result<()> {
        let (head_dim, kv_dim) = (shape.head_dim, shape.kv_dim());
        let len = u32::try_from(projected.k.len() / kv_dim).unwrap_or(u32::MAX);
        for (kv_head, (&layout, &offset)) in
            cache.layouts.iter().zip(&cache.slot_offsets).enumerate()
        {
            let commit = layout.commit(projected.start, len);
            for k_pos in commit.sink.chain(commit.ring) {
                let from = (k_pos - projected.start) as usize * kv_dim + kv_head * head_dim;
                let to = (offset + layout.slot(k_pos) as usize) * head_dim;
                cache.k[to..][..head_dim].copy_from_slice(&projected.k[from..][..head_dim]);
                cache.v[to..][..head_dim].copy_from_slice(&projected.v[from..][..head_dim]);
            }
        }
        Ok(())
    }

    fn attention_backward(
        &self,
        inputs: &AttentionBackward<'_, Vec<f32>>,
    ) -> Result<AttentionGradients<Vec<f32>>> {
        let backward = attention_backward::attention_backward(inputs);
        Ok(AttentionGradients {
            d_q: backward.d_q,
            d_k: backward.d_k,
            d_v: backward.d_v,
            influence: backward.influence,
        })
    }

    fn cross_entropy(
        &self,
        mut logits: Vec<f32>,
        targets: &[u32],
        scale: f64,
    ) -> Result<(f64, Vec<f32>)> {
        let loss = cross_entropy::cross_entropy(&mut logits, targets, scale);
        Ok((loss, logits))
    }

    fn kl_divergence(
        &self,
        teacher: &Vec<f32>,
        mut logits: Vec<f32>,
        rows: usize,
        scale: f64,
    ) -> Result<(f64, Vec<f32>)> {
        let loss = cross_entropy::kl_divergence(teacher, &mut logits, rows, scale);
        Ok((loss, logits))
    }
}

/// The buffer of a product: what is added to, or a fresh one that is only written.
fn start(len: usize, addend: Option<Vec<f32>>) -> (Vec<f32>, Store) {
    match addend {
        Some(addend) => (addend, Store::Add),
        None => (vec![0.0; len], Store::Set),
    }
}
