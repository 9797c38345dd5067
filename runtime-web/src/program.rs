//! The model as a list of dispatches, written once when the engine is made: pipelines, bind groups and grids never
//! change afterwards, only the step state and the number of tokens in flight do.

use std::collections::BTreeMap;

use bytemuck::bytes_of;
use moa_format::{EMBEDDING, FINAL_NORM, TensorEntry, layer_tensor};
use moa_mask::abi::{ProjectParams, RowParams};
use moa_shaders::{ARGMAX_PARTS, ELEMENT_THREADS, Kernel, VectorType};

use crate::buffers::{Allocator, Buffers, LayerCache};
use crate::error::{EngineError, Result};
use crate::pipelines::Pipelines;
use crate::separate::Product;
use crate::setup::{Setup, vector_type};
use crate::step::{Grid, Step};
use crate::weights::{Run, WeightBuffers};

/// What WebGPU allows in one dimension of a dispatch.
pub(crate) const MAX_WORKGROUPS: u32 = 65_535;

/// A layer: its dispatches for a chunk of a prompt, and for one decoded token.
#[derive(Debug)]
pub(crate) struct LayerSteps {
    pub(crate) prefill: Vec<Step>,
    pub(crate) decode: Vec<Step>,
    /// Multiplications of the layer's weights for one token.
    pub(crate) weights: u64,
}

/// All dispatches.
#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) embedding: Vec<Step>,
    pub(crate) layers: Vec<LayerSteps>,
    /// Final norm and `lm_head` for the last token in flight.
    pub(crate) logits: Vec<Step>,
    /// The same after a decoded token, where its last layer leaves codes.
    decode_logits: Option<Vec<Step>>,
    /// The choice of the next token, greedily and otherwise.
    pub(crate) argmax: [Step; 2],
    pub(crate) sample: Step,
}

/// Whether decode runs the kernels that do several things at once, or the same operations one by one: what the fused
/// kernels are measured against, and what serves the few tensors that they do not. Prefill multiplies in large workgroups
/// with the former, in small ones with the latter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DecodeKernels {
    /// Norms, rotation, the way into the ring, gates and residuals inside the projections.
    Fused,
    /// One operation a dispatch.
    Separate,
}

impl Program {
    pub(crate) fn new<'g>(
        pipelines: &mut Pipelines<'g>,
        allocator: &mut Allocator<'g>,
        setup: &Setup,
        weights: &WeightBuffers,
        buffers: &Buffers,
        kernels: DecodeKernels,
    ) -> Result<Self> {
        let mut builder = Builder {
            pipelines,
            allocator,
            setup,
            weights,
            buffers,
            params: BTreeMap::new(),
            kernels,
            arrives_as_codes: false,
        };
        let embedding = builder.embedding()?;
        let layers = (0..setup.config().layers)
            .zip(&buffers.layers)
            .map(|(layer, cache)| builder.layer(layer, cache))
            .collect::<Result<_>>()?;
        let decode_logits = builder
            .arrives_as_codes
            .then(|| builder.fused_logits(true))
            .transpose()?;
        let logits = builder.logits()?;
        let params = builder.row_params(setup.config().vocab_size, false);
        let argmax = [
            builder.choice(Kernel::ArgmaxParts, &params, ARGMAX_PARTS),
            builder.choice(Kernel::Argmax, &params, 1),
        ];
        let sample = builder.choice(Kernel::Sample, &buffers.sampling, 1);
        Ok(Self {
            embedding,
            layers,
            logits,
            decode_logits,
            argmax,
            sample,
        })
    }

    /// Dispatches of one decoded token, choosing it included.
    pub(crate) fn decode_dispatches(&self) -> usize {
        self.token().count() + self.argmax.len()
    }

    /// The dispatches of one decoded token, its choice left out.
    pub(crate) fn token(&self) -> impl Iterator<Item = &Step> {
        let layers = self.layers.iter().flat_map(|layer| &layer.decode);
        let logits = self.decode_logits.as_ref().unwrap_or(&self.logits);
        self.embedding.iter().chain(layers).chain(logits)
    }
}

pub(crate) struct Builder<'a, 'g> {
    pub(crate) pipelines: &'a mut Pipelines<'g>,
    allocator: &'a mut Allocator<'g>,
    pub(crate) setup: &'a Setup,
    pub(crate) weights: &'a WeightBuffers,
    pub(crate) buffers: &'a Buffers,
    /// One uniform buffer for each distinct set of constants.
    params: BTreeMap<Vec<u8>, wgpu::Buffer>,
    pub(crate) kernels: DecodeKernels,
    /// Whether the token in flight comes from the layer before as codes too.
    pub(crate) arrives_as_codes: bool,
}

impl<'a> Builder<'a, '_> {
    /// Whether inputs of products are rounded to bytes in decode.
    pub(crate) fn packed(&self) -> bool {
        self.pipelines.packed()
    }

    /// Whether workgroups may be larger than by default.
    pub(crate) fn wide(&self) -> bool {
        self.pipelines.wide()
    }

    pub(crate) fn params(&mut self, data: &[u8]) -> wgpu::Buffer {
        if let Some(buffer) = self.params.get(data) {
            return buffer.clone();
        }
        let buffer = self.allocator.uniform(data);
        self.params.insert(data.to_vec(), buffer.clone());
        buffer
    }

    #[expect(clippy::cast_possible_truncation, reason = "kernels compute in f32")]
    pub(crate) fn eps(&self) -> f32 {
        self.setup.config().rms_norm_eps as f32
    }

    pub(crate) fn row_params(&mut self, dim: u32, last_only: bool) -> wgpu::Buffer {
        let params = RowParams {
            dim,
            eps: self.eps(),
            last_only: last_only.into(),
            reserved: 0,
        };
        self.params(bytes_of(&params))
    }

    /// Where the pieces of a run lie, for the kernels that find rows by themselves.
    pub(crate) fn run_params(&self, run: &Run<'_>) -> ProjectParams {
        ProjectParams {
            rows: run.rows,
            cols: run.cols,
            row_offset: run.row_offset,
            piece_rows: run.piece_rows,
            piece_step: run.piece_step,
            scales_step: run.scales_step,
            last_scales_step: run.last_scales_step,
            eps: self.eps(),
        }
    }

    pub(crate) fn step(
        &mut self,
        kernel: Kernel,
        grid: Grid,
        buffers: &[(&str, &wgpu::Buffer)],
    ) -> Step {
        let bindings: Vec<_> = buffers
            .iter()
            .map(|(name, buffer)| (*name, buffer.as_entire_buffer_binding()))
            .collect();
        self.step_of(kernel, grid, &bindings)
    }

    pub(crate) fn step_of(
        &mut self,
        kernel: Kernel,
        grid: Grid,
        bindings: &[(&str, wgpu::BufferBinding<'_>)],
    ) -> Step {
        let pipeline = self.pipelines.pipeline(kernel);
        self.step_with(pipeline, kernel, grid, bindings)
    }

    fn step_with(
        &mut self,
        pipeline: wgpu::ComputePipeline,
        kernel: Kernel,
        grid: Grid,
        bindings: &[(&str, wgpu::BufferBinding<'_>)],
    ) -> Step {
        // A fused kernel's window is bound twice, as `values` and as `words`.
        let weight_bytes = bindings
            .iter()
            .filter(|(name, _)| matches!(*name, "values" | "scales"))
            .filter_map(|(_, binding)| binding.size)
            .map(u64::from)
            .sum();
        Step {
            label: self.pipelines.label(kernel),
            weight_bytes,
            pipeline,
            few: None,
            bind_group: self.pipelines.bind(kernel, bindings),
            grid,
        }
    }

    /// A step whose constants are part of its source, so that weights need not wait until it is known where they lie.
    /// Layers that are alike share a pipeline all the same; `lm_head` has one for each run of its pieces.
    pub(crate) fn step_of_constants(
        &mut self,
        kernel: Kernel,
        params: &[u8],
        grid: Grid,
        bindings: &[(&str, wgpu::BufferBinding<'_>)],
    ) -> Step {
        let pipeline = self.pipelines.pipeline_with(kernel, params);
        self.step_with(pipeline, kernel, grid, bindings)
    }

    pub(crate) fn tensor(&self, name: &str) -> Result<&'a TensorEntry> {
        let setup: &'a Setup = self.setup;
        setup
            .manifest()
            .tensor(name)
            .ok_or_else(|| EngineError::UnsupportedModel {
                what: format!("tensor {name}"),
                got: "missing".into(),
                expected: "in the manifest",
            })
    }

    /// The one piece of a norm's weights or of a bias.
    pub(crate) fn vector(&self, name: &str) -> Result<(VectorType, wgpu::BufferBinding<'a>)> {
        let tensor = self.tensor(name)?;
        let weights: &'a WeightBuffers = self.weights;
        let mut pieces = weights.pieces(tensor)?;
        match pieces.pop() {
            Some(piece) if pieces.is_empty() => Ok((vector_type(tensor)?, piece.values)),
            _ => Err(EngineError::UnsupportedModel {
                what: format!("number of pieces of {name}"),
                got: tensor.pieces.len().to_string(),
                expected: "one",
            }),
        }
    }

    fn embedding(&mut self) -> Result<Vec<Step>> {
        let (weights, buffers) = (self.weights, self.buffers);
        let tensor = self.tensor(EMBEDDING)?;
        let mut steps = Vec::new();
        for run in weights.runs(tensor)? {
            let params = self.run_params(&run);
            let params = self.params(bytes_of(&params));
            let bindings = [
                ("params", params.as_entire_buffer_binding()),
                ("state", buffers.state.as_entire_buffer_binding()),
                ("tokens", buffers.tokens.as_entire_buffer_binding()),
                ("values", run.window.binding.clone()),
                ("y", buffers.hidden.as_entire_buffer_binding()),
                ("words", run.window.binding.clone()),
            ];
            let grid = Grid::Tokens((run.cols / 4).div_ceil(ELEMENT_THREADS));
            steps.push(Step {
                // One row of them all.
                weight_bytes: 0,
                ..self.step_of(Kernel::Embedding(run.weight), grid, &bindings)
            });
        }
        Ok(steps)
    }

    fn layer(&mut self, layer: u32, cache: &LayerCache) -> Result<LayerSteps> {
        let buffers = self.buffers;
        let config = self.setup.config().clone();
        let name = |part: &str| layer_tensor(layer, part);
        let into = |x, y| Product {
            x,
            y,
            add: false,
            once: false,
        };

        let mut before = vec![self.norm(&name("input_layernorm.weight"), false)?];
        for (part, y) in [
            ("q_proj", &buffers.q),
            ("k_proj", &buffers.k),
            ("v_proj", &buffers.v),
        ] {
            let bias = config
                .qkv_bias
                .then(|| name(&format!("self_attn.{part}.bias")));
            let weight = name(&format!("self_attn.{part}.weight"));
            before.extend(self.linear(&weight, bias.as_deref(), &into(&buffers.normed, y))?);
        }

        let out = self.linear(
            &name("self_attn.o_proj.weight"),
            None,
            &Product {
                x: &buffers.attended,
                y: &buffers.hidden,
                add: true,
                once: false,
            },
        )?;
        let mut gate_up = vec![self.norm(&name("post_attention_layernorm.weight"), false)?];
        gate_up.extend(self.linear(
            &name("mlp.gate_proj.weight"),
            None,
            &into(&buffers.normed, &buffers.gate),
        )?);
        gate_up.extend(self.linear(
            &name("mlp.up_proj.weight"),
            None,
            &into(&buffers.normed, &buffers.up),
        )?);
        let params = self.row_params(config.ffn_dim, false);
        gate_up.push(self.step(
            Kernel::Swiglu,
            Grid::Tokens((config.ffn_dim / 4).div_ceil(ELEMENT_THREADS)),
            &[
                ("params", &params),
                ("state", &buffers.state),
                ("gate", &buffers.gate),
                ("up", &buffers.up),
            ],
        ));
        let down = self.linear(
            &name("mlp.down_proj.weight"),
            None,
            &Product {
                x: &buffers.gate,
                y: &buffers.hidden,
                add: true,
                once: false,
            },
        )?;

        let hidden = u64::from(config.hidden_dim);
        let attention = u64::from(config.q_dim()) * 2 + u64::from(config.kv_dim()) * 2;
        let weights = hidden * (attention + 3 * u64::from(config.ffn_dim));
        let attend = self.attend_prefill(cache);
        let prefill = [
            before.clone(),
            attend,
            out.clone(),
            gate_up.clone(),
            down.clone(),
        ]
        .concat();
        let decode = match self.kernels {
            DecodeKernels::Separate => [
                before,
                self.rope_decode(cache),
                self.attend_decode(cache, false),
                out,
                gate_up,
                down,
            ]
            .concat(),
            DecodeKernels::Fused => self.fused_layer(layer, cache, before, gate_up)?,
        };
        Ok(LayerSteps {
            prefill,
            decode,
            weights,
        })
    }

    fn logits(&mut self) -> Result<Vec<Step>> {
        if self.kernels == DecodeKernels::Fused {
            return self.fused_logits(false);
        }
        let buffers = self.buffers;
        let mut steps = vec![self.norm(FINAL_NORM, true)?];
        steps.extend(self.linear(
            self.setup.config().lm_head(),
            None,
            &Product {
                x: &buffers.normed,
                y: &buffers.logits,
                add: false,
                once: true,
            },
        )?);
        Ok(steps)
    }

    fn choice(&mut self, kernel: Kernel, params: &wgpu::Buffer, workgroups: u32) -> Step {
        let buffers = self.buffers;
        self.step(
            kernel,
            Grid::Once(workgroups),
            &[
                ("params", params),
                ("state", &buffers.state),
                ("logits", &buffers.logits),
                ("best", &buffers.best),
                ("tokens", &buffers.tokens),
                ("ids", &buffers.ids),
                ("stops", &buffers.stops),
                ("counts", &buffers.counts),
            ],
        )
    }
}
