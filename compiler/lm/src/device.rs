//! What a device must compute: a short list of explicit operations, forward and activation-backward.
//!
//! The model, its profile and its sessions are written once over this trait. It deliberately has no graph, no
//! tensors with shapes and no autograd: buffers are flat, shapes are arguments, and the backward of each
//! operation is an operation. Weights have no gradients. A device may keep values in fewer bits than f32 where
//! [`Keep`] allows it.

use std::fmt;

use moa_mask::{HeadMask, MaskGrid, RingLayout};

use crate::{Estimator, Result};

/// A weight matrix `[outputs, inputs]`, row-major, and its bias.
#[derive(Debug)]
pub struct Linear<B> {
    /// The matrix.
    pub weight: B,
    /// `[outputs]`, if there is one.
    pub bias: Option<B>,
    /// Rows of the matrix.
    pub outputs: usize,
    /// Columns of the matrix.
    pub inputs: usize,
}

/// Heads of an attention layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionShape {
    /// Query heads.
    pub heads: usize,
    /// KV heads; divides `heads`.
    pub kv_heads: usize,
    /// Channels of a head.
    pub head_dim: usize,
}

impl AttentionShape {
    /// Query heads that share a KV head.
    pub const fn gqa_group(self) -> usize {
        self.heads / self.kv_heads
    }

    /// Values of one position's queries.
    pub const fn q_dim(self) -> usize {
        self.heads * self.head_dim
    }

    /// Values of one position's keys.
    pub const fn kv_dim(self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// `1 / sqrt(head_dim)`.
    pub fn softmax_scale(self) -> f32 {
        #[expect(
            clippy::cast_precision_loss,
            reason = "head_dim is at most 2^14, exact in f32"
        )]
        let head_dim = self.head_dim as f32;
        1.0 / head_dim.sqrt()
    }
}

/// Cosines and sines of a run of positions, `[positions, head_dim / 2]` each.
#[derive(Debug)]
pub struct RopeTable<B> {
    /// Cosines.
    pub cos: B,
    /// Sines.
    pub sin: B,
    /// Channels of a head.
    pub head_dim: usize,
}

/// How exactly values must be kept. A device with one kind of buffer need not care.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// As f32: residual streams, logits, whatever is added up further.
    Full,
    /// As products and attention read their inputs.
    Working,
}

/// Which way RoPE turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// As in the forward pass.
    Forward,
    /// Back: the transposed rotation, for gradients.
    Backward,
}

/// One layer's K and V cache: each KV head's sink slots and ring, one after another.
#[derive(Debug)]
pub struct KvCache<B> {
    /// Slots of each KV head.
    pub layouts: Vec<RingLayout>,
    /// First slot of each KV head.
    pub slot_offsets: Vec<usize>,
    /// `[slots, head_dim]`, RoPE applied.
    pub k: B,
    /// `[slots, head_dim]`.
    pub v: B,
}

/// Queries `[q_len, heads, head_dim]`, keys and values `[q_len, kv_heads, head_dim]` of the positions
/// `start, start + 1, ...`, RoPE applied.
#[derive(Debug)]
pub struct Projected<'a, B> {
    /// Queries.
    pub q: &'a B,
    /// Keys.
    pub k: &'a B,
    /// Values.
    pub v: &'a B,
    /// Position of the first row.
    pub start: u32,
}

/// What attention gives.
#[derive(Debug)]
pub struct Attended<B> {
    /// `[q_len, heads, head_dim]`.
    pub o: B,
    /// Log-sum-exp of the scaled visible scores, `[q_len, heads]`, or as the device's own backward wants it.
    pub lse: B,
}

/// What attention's backward and the influence of its entries are computed from.
#[derive(Debug)]
pub struct AttentionBackward<'a, B> {
    /// The layer's heads.
    pub shape: AttentionShape,
    /// Queries, keys and values of a whole text (`start` is 0).
    pub projected: Projected<'a, B>,
    /// What each KV head sees.
    pub masks: &'a [HeadMask],
    /// From the forward pass. A device may use it or sum again.
    pub lse: &'a B,
    /// Gradient of the output, `[len, heads, head_dim]`.
    pub d_o: &'a B,
    /// The spans whose costs are wanted.
    pub grid: MaskGrid,
    /// Whether per-entry costs are wanted beside joint ones; maps imply it.
    pub per_entry: bool,
    /// Side of the blocks of per-entry maps, if maps are wanted.
    pub blocks: Option<usize>,
}

/// One layer's share of an [`Influence`](crate::Influence).
#[derive(Debug, Clone, PartialEq)]
pub struct LayerInfluence {
    /// `[kv_head, bin]` for each estimator; [`Estimator::PerEntry`]'s is empty if nobody asked.
    pub curves: [Vec<f64>; Estimator::ALL.len()],
    /// Sums of magnitudes by blocks, `[head, side, side]`; empty if not asked for.
    pub abs: Vec<f64>,
    /// Sums by blocks, `[head, side, side]`; empty if not asked for.
    pub signed: Vec<f64>,
}

/// Gradients of attention's inputs, in the shapes of [`Projected`], and the influence of its entries.
#[derive(Debug)]
pub struct AttentionGradients<B> {
    /// Gradient of the queries.
    pub d_q: B,
    /// Gradient of the keys.
    pub d_k: B,
    /// Gradient of the values.
    pub d_v: B,
    /// Costs of spans.
    pub influence: LayerInfluence,
}

/// A place where the model runs. Every buffer is a row-major run of numbers.
pub trait Device: fmt::Debug + Send + Sync {
    /// Values on the device.
    type Buffer: fmt::Debug + Send + Sync;

    /// What a user would call the device.
    fn label(&self) -> String;

    /// Moves values to the device, as f32.
    fn upload(&self, values: Vec<f32>) -> Result<Self::Buffer>;

    /// Moves a matrix of weights or a bias to the device, as its products read it.
    fn upload_weight(&self, values: Vec<f32>) -> Result<Self::Buffer> {
        self.upload(values)
    }

    /// Reads values back.
    fn download(&self, buffer: &Self::Buffer) -> Result<Vec<f32>>;

    /// Number of values.
    fn len(&self, buffer: &Self::Buffer) -> usize;

    /// A second buffer with the same values.
    fn copy(&self, buffer: &Self::Buffer) -> Result<Self::Buffer>;

    /// Zeros.
    fn zeros(&self, len: usize, keep: Keep) -> Result<Self::Buffer>;

    /// Bytes of one number in a buffer that is kept as `keep`.
    fn value_bytes(&self, keep: Keep) -> u64 {
        let _ = keep;
        size_of::<f32>() as u64
    }

    /// What gradients of the loss are multiplied by on the way back, so that small ones do not vanish: a power of two.
    fn gradient_scale(&self) -> f64 {
        1.0
    }

    /// Whether a layer's attention is cheaper to compute again on the way back than to keep.
    fn recomputes_attention(&self) -> bool {
        false
    }

    /// Rows of the embedding `[_, dim]`, to be kept in full.
    fn embed(&self, table: &Self::Buffer, dim: usize, ids: &[u32]) -> Result<Self::Buffer> {
        self.gather_rows(table, dim, ids)
    }

    /// The given rows of `table` `[_, dim]`, one after another.
    fn gather_rows(&self, table: &Self::Buffer, dim: usize, rows: &[u32]) -> Result<Self::Buffer>;

    /// Writes `values` to the given distinct rows of `into` `[_, dim]`; both are kept in full.
    fn scatter_rows(
        &self,
        values: &Self::Buffer,
        dim: usize,
        rows: &[u32],
        into: &mut Self::Buffer,
    ) -> Result<()>;

    /// `x W^T + bias + addend`: `x` is `[rows, inputs]`, the rest `[rows, outputs]`. An addend is kept in full, and so is
    /// what it becomes; otherwise `keep` says.
    fn matmul(
        &self,
        x: &Self::Buffer,
        linear: &Linear<Self::Buffer>,
        addend: Option<Self::Buffer>,
        keep: Keep,
    ) -> Result<Self::Buffer>;

    /// dL/dx of [`matmul`](Self::matmul) plus an addend: `d_y W + addend`. `d_y` may be kept either way.
    fn matmul_backward(
        &self,
        d_y: &Self::Buffer,
        linear: &Linear<Self::Buffer>,
        addend: Option<Self::Buffer>,
        keep: Keep,
    ) -> Result<Self::Buffer>;

    /// `x / sqrt(mean(x^2) + eps) * weight`, row by row, ready for a product.
    fn rms_norm(&self, x: &Self::Buffer, weight: &Self::Buffer, eps: f64) -> Result<Self::Buffer>;

    /// dL/dx of [`rms_norm`](Self::rms_norm), plus an addend; `d_y`, addend and result are kept in full.
    fn rms_norm_backward(
        &self,
        x: &Self::Buffer,
        weight: &Self::Buffer,
        d_y: &Self::Buffer,
        eps: f64,
        addend: Option<Self::Buffer>,
    ) -> Result<Self::Buffer>;

    /// Rotates `x` `[positions, heads, head_dim]` in place.
    fn rope(
        &self,
        x: &mut Self::Buffer,
        heads: usize,
        table: &RopeTable<Self::Buffer>,
        turn: Turn,
    ) -> Result<()>;

    /// `silu(gate) * up`.
    fn swiglu(&self, gate: &Self::Buffer, up: &Self::Buffer) -> Result<Self::Buffer>;

    /// dL/dgate and dL/dup, in the buffers of `gate` and `up`.
    fn swiglu_backward(
        &self,
        gate: Self::Buffer,
        up: Self::Buffer,
        d_y: &Self::Buffer,
    ) -> Result<(Self::Buffer, Self::Buffer)>;

    /// Masked attention of a run of positions over the cache as it was before them, if there is one, and over
    /// the run itself. Without a cache `start` is 0. Keys that no query sees are not read.
    fn attention(
        &self,
        shape: AttentionShape,
        projected: &Projected<'_, Self::Buffer>,
        masks: &[HeadMask],
        cache: Option<&KvCache<Self::Buffer>>,
    ) -> Result<Attended<Self::Buffer>>;

    /// Writes a run's keys and values to the slots where the cache's layouts want them.
    fn commit(
        &self,
        shape: AttentionShape,
        projected: &Projected<'_, Self::Buffer>,
        cache: &mut KvCache<Self::Buffer>,
    ) -> Result<()>;

    /// Gradients of masked attention's inputs, and the costs of spans.
    ///
    /// Where the masks hide something, D is that of the masked rows, and an entry that they hide counts in
    /// per-entry sums with the effect of hiding it again after it was shown.
    fn attention_backward(
        &self,
        inputs: &AttentionBackward<'_, Self::Buffer>,
    ) -> Result<AttentionGradients<Self::Buffer>>;

    /// Sum over rows of the cross entropy of `targets` under `logits` `[targets.len(), vocab]`, and `scale`
    /// times its gradient, in the buffer of `logits`.
    fn cross_entropy(
        &self,
        logits: Self::Buffer,
        targets: &[u32],
        scale: f64,
    ) -> Result<(f64, Self::Buffer)>;

    /// Sum over `rows` rows of KL(softmax(teacher) || softmax(logits)), and `scale` times its gradient with
    /// respect to `logits`, in their buffer.
    fn kl_divergence(
        &self,
        teacher: &Self::Buffer,
        logits: Self::Buffer,
        rows: usize,
        scale: f64,
    ) -> Result<(f64, Self::Buffer)>;
}
