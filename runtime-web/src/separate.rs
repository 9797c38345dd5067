//! One operation a dispatch: what a chunk of a prompt runs, and a decoded token where no fused kernel of `fused` serves.

use bytemuck::bytes_of;
use moa_mask::abi::PieceParams;
use moa_shaders::{Kernel, MATVEC_ROWS, MatmulThreads};

use crate::error::{EngineError, Result};
use crate::program::{Builder, DecodeKernels, MAX_WORKGROUPS};
use crate::step::{Grid, Step};
use crate::weights::BoundPiece;

/// Rows of a matrix below which a chunk's tiles of 64 tokens would leave large devices without work.
const FEW_ROWS: u32 = 1024;

/// What a weight matrix is multiplied with, and where the product goes.
pub(crate) struct Product<'a> {
    pub(crate) x: &'a wgpu::Buffer,
    pub(crate) y: &'a wgpu::Buffer,
    /// Added to what `y` holds.
    pub(crate) add: bool,
    /// The product of the last token only, with `x` and `y` of one row.
    pub(crate) once: bool,
}

impl Builder<'_, '_> {
    fn piece_params(&mut self, piece: &BoundPiece<'_>, y_stride: u32) -> wgpu::Buffer {
        let params = PieceParams {
            rows: piece.rows,
            cols: piece.cols,
            row_offset: piece.row_offset,
            y_stride,
        };
        self.params(bytes_of(&params))
    }

    pub(crate) fn norm(&mut self, name: &str, last_only: bool) -> Result<Step> {
        let buffers = self.buffers;
        let params = self.row_params(self.setup.config().hidden_dim, last_only);
        let (kind, vector) = self.vector(name)?;
        let kernel = Kernel::RmsNorm(kind);
        let bindings = [
            ("params", params.as_entire_buffer_binding()),
            ("state", buffers.state.as_entire_buffer_binding()),
            ("x", buffers.hidden.as_entire_buffer_binding()),
            ("y", buffers.normed.as_entire_buffer_binding()),
            ("vector", vector),
        ];
        let grid = if last_only {
            Grid::Once(1)
        } else {
            Grid::Tokens(1)
        };
        Ok(self.step_of(kernel, grid, &bindings))
    }

    /// The pieces of one weight matrix against the tokens in flight.
    pub(crate) fn linear(
        &mut self,
        name: &str,
        bias: Option<&str>,
        product: &Product<'_>,
    ) -> Result<Vec<Step>> {
        let (weights, buffers) = (self.weights, self.buffers);
        let tensor = self.tensor(name)?;
        let bias = bias.map(|name| self.vector(name)).transpose()?;
        let kind = bias.as_ref().map(|(kind, _)| *kind);
        let add = product.add;
        let mut steps = Vec::new();
        for piece in weights.pieces(tensor)? {
            let weight = piece.weight;
            let threads = match self.kernels {
                DecodeKernels::Separate => MatmulThreads::Narrow,
                DecodeKernels::Fused if piece.rows < FEW_ROWS => MatmulThreads::Short,
                DecodeKernels::Fused => MatmulThreads::Wide,
            };
            let matmul = Kernel::Matmul {
                weight,
                bias: kind,
                add,
                threads,
            };
            let matvec = Kernel::Matvec {
                weight,
                bias: kind,
                add,
            };
            let workgroups = piece.rows.div_ceil(MATVEC_ROWS);
            if workgroups > MAX_WORKGROUPS {
                return Err(EngineError::UnsupportedModel {
                    what: format!("rows in a piece of {name}"),
                    got: piece.rows.to_string(),
                    expected: "at most 1,048,560",
                });
            }
            let params = self.piece_params(&piece, tensor.rows);
            let mut bindings = vec![
                ("params", params.as_entire_buffer_binding()),
                ("state", buffers.state.as_entire_buffer_binding()),
                ("x", product.x.as_entire_buffer_binding()),
                ("values", piece.values.clone()),
                ("y", product.y.as_entire_buffer_binding()),
            ];
            bindings.extend(piece.scales.clone().map(|scales| ("scales", scales)));
            bindings.extend(bias.clone().map(|(_, vector)| ("vector", vector)));
            steps.push(if product.once {
                self.step_of(matvec, Grid::Once(workgroups), &bindings)
            } else {
                let few = self.pipelines.pipeline(matvec);
                let grid = Grid::Linear {
                    rows: piece.rows,
                    tile_tokens: threads.tokens(),
                };
                Step {
                    few: Some(few),
                    ..self.step_of(matmul, grid, &bindings)
                }
            });
        }
        Ok(steps)
    }
}
