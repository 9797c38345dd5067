//! One dispatch of the engine, and how many workgroups it takes.

use moa_shaders::{ATTENTION_ROWS, MATMUL_TILE, MATVEC_ROWS};

/// Tokens up to which a weight matrix is read once a token: a tile of `matmul` would be mostly empty.
const FEW_TOKENS: u32 = 4;

/// How many workgroups a step takes for the tokens in flight.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Grid {
    /// Whatever is in flight.
    Once(u32),
    /// So many for each token.
    Tokens(u32),
    /// Tiles of tokens and rows; by token where few are in flight.
    Linear { rows: u32, tile_tokens: u32 },
    /// Tiles of query rows for each KV head.
    Attention { gqa_group: u32, kv_heads: u32 },
}

/// One dispatch.
#[derive(Debug, Clone)]
pub(crate) struct Step {
    /// Stem and variant, for benches.
    #[cfg_attr(
        target_arch = "wasm32",
        expect(dead_code, reason = "benches are native")
    )]
    pub(crate) label: String,
    /// Bytes of weights that it reads, for benches.
    #[cfg_attr(
        target_arch = "wasm32",
        expect(dead_code, reason = "benches are native")
    )]
    pub(crate) weight_bytes: u64,
    pub(crate) pipeline: wgpu::ComputePipeline,
    /// For [`Grid::Linear`]: the pipeline for few tokens.
    pub(crate) few: Option<wgpu::ComputePipeline>,
    pub(crate) bind_group: wgpu::BindGroup,
    pub(crate) grid: Grid,
}

impl Step {
    /// Writes the dispatch for `len` tokens in flight.
    pub(crate) fn encode(&self, pass: &mut wgpu::ComputePass<'_>, len: u32) {
        let mut pipeline = &self.pipeline;
        let (x, y) = match self.grid {
            Grid::Once(x) => (x, 1),
            Grid::Tokens(x) => (x, len),
            Grid::Linear { rows, tile_tokens } => match &self.few {
                Some(few) if len <= FEW_TOKENS => {
                    pipeline = few;
                    (rows.div_ceil(MATVEC_ROWS), len)
                }
                _ => (rows.div_ceil(MATMUL_TILE), len.div_ceil(tile_tokens)),
            },
            Grid::Attention {
                gqa_group,
                kv_heads,
            } => ((len * gqa_group).div_ceil(ATTENTION_ROWS), kv_heads),
        };
        pass.set_pipeline(pipeline);
        pass.set_bind_group(0, &self.bind_group, &[]);
        pass.dispatch_workgroups(x, y, 1);
    }
}
