//! Decode's dispatches with several operations each: norms, biases, rotation, the way into the ring, gates and
//! residuals inside the projections. Six to a layer: qkv, attention in parts, their joining, `o_proj`, gate and up, down;
//! seven where keys and values are rounded to bytes, for which a workgroup must see a whole row.
//!
//! A fused kernel binds one window of a weight buffer and finds its tensors by their places. Where tensors do not
//! share a window or a type, the separate kernels of `program` take their part; nothing else differs.

use bytemuck::bytes_of;
use moa_format::{FINAL_NORM, TensorEntry, layer_tensor};
use moa_mask::KvFormat;
use moa_mask::abi::{CODE_GROUP, GateUpParams, QUANT_GROUP, QkvParams};
use moa_shaders::{Kernel, Lanes, VectorType, WeightType};

use crate::buffers::LayerCache;
use crate::error::Result;
use crate::program::Builder;
use crate::setup::{vector_type, weight_type};
use crate::step::{Grid, Step};
use crate::weights::{Places, Window};

/// Rows of a matrix from which on 16 threads share four of them: enough workgroups for every core even so.
const MANY_ROWS: u32 = 8192;
/// Columns up to which 32 threads have a group of them each.
const SHORT_ROW: u32 = 32 * QUANT_GROUP;

/// A product with the token in flight, perhaps normalized, perhaps added to what is there.
pub(crate) struct Projection<'a> {
    pub(crate) x: &'a wgpu::Buffer,
    pub(crate) y: &'a wgpu::Buffer,
    pub(crate) norm: Option<&'a str>,
    pub(crate) add: bool,
    /// Whether `x` holds codes.
    pub(crate) codes: bool,
}

fn lanes(rows: u32, cols: u32) -> Lanes {
    if rows >= MANY_ROWS {
        Lanes::L16
    } else if cols <= SHORT_ROW {
        Lanes::L32
    } else {
        Lanes::L64
    }
}

impl<'a> Builder<'a, '_> {
    /// The layer for one token; `before` and `gate_up` are the separate dispatches that serve where no fused kernel does: those
    /// before attention, and those from the MLP's norm to its activation.
    pub(crate) fn fused_layer(
        &mut self,
        layer: u32,
        cache: &LayerCache,
        before: Vec<Step>,
        gate_up: Vec<Step>,
    ) -> Result<Vec<Step>> {
        let buffers = self.buffers;
        let name = |part: &str| layer_tensor(layer, part);
        let mut steps = match self.qkv(layer, cache)? {
            Some(steps) => steps,
            None => [before, self.rope_decode(cache)].concat(),
        };
        let o_proj = name("self_attn.o_proj.weight");
        let attended = self.attended_codes(&o_proj)?;
        steps.extend(self.attend_decode(cache, attended));
        steps.extend(self.project(
            &o_proj,
            &Projection {
                x: &buffers.attended,
                y: &buffers.hidden,
                norm: None,
                add: true,
                codes: attended.is_some(),
            },
        )?);
        let down_proj = name("mlp.down_proj.weight");
        let (gate_up, codes) = self.gate_up(layer, &down_proj)?.unwrap_or((gate_up, false));
        steps.extend(gate_up);
        steps.extend(self.project(
            &down_proj,
            &Projection {
                x: &buffers.gate,
                y: &buffers.hidden,
                norm: None,
                add: true,
                codes,
            },
        )?);
        Ok(steps)
    }

    /// Final norm and `lm_head` of the last token in flight.
    pub(crate) fn fused_logits(&mut self) -> Result<Vec<Step>> {
        let buffers = self.buffers;
        self.project(
            self.setup.config().lm_head(),
            &Projection {
                x: &buffers.hidden,
                y: &buffers.logits,
                norm: Some(FINAL_NORM),
                add: false,
                codes: false,
            },
        )
    }

    /// One dispatch for as many pieces of a matrix as one binding holds.
    fn project(&mut self, name: &str, projection: &Projection<'_>) -> Result<Vec<Step>> {
        let (weights, buffers) = (self.weights, self.buffers);
        let tensor = self.tensor(name)?;
        let norm = projection.norm.map(|norm| self.vector(norm)).transpose()?;
        let kind = norm.as_ref().map(|(kind, _)| *kind);
        let mut steps = Vec::new();
        for run in weights.runs(tensor)? {
            let params = self.run_params(&run);
            let lanes = if projection.codes {
                if run.cols <= SHORT_ROW {
                    Lanes::L32One
                } else {
                    Lanes::L64One
                }
            } else {
                match lanes(run.rows, run.cols) {
                    Lanes::L64 if norm.is_none() => Lanes::L64Two,
                    lanes => lanes,
                }
            };
            let kernel = Kernel::Project {
                weight: run.weight,
                norm: kind,
                add: projection.add,
                codes: projection.codes,
                lanes,
            };
            let mut bindings = vec![
                ("state", buffers.state.as_entire_buffer_binding()),
                ("x", projection.x.as_entire_buffer_binding()),
                ("values", run.window.binding.clone()),
                ("y", projection.y.as_entire_buffer_binding()),
                ("words", run.window.binding.clone()),
            ];
            bindings.extend(norm.clone().map(|(_, vector)| ("vector", vector)));
            let grid = Grid::Once(run.rows.div_ceil(lanes.rows()));
            steps.push(self.step_of_constants(kernel, bytes_of(&params), grid, &bindings));
        }
        Ok(steps)
    }

    /// The type of the weights for which attention leaves its results as codes, if it does.
    fn attended_codes(&self, o_proj: &str) -> Result<Option<WeightType>> {
        let weight = weight_type(self.tensor(o_proj)?.dtype);
        let leaves = self.packed() && weight.has_scales() && self.setup.heads().leaves_codes();
        Ok(leaves.then_some(weight))
    }

    /// The one piece of a tensor in a window.
    fn place(&self, window: &Window<'_>, tensor: &TensorEntry) -> Result<Option<Places>> {
        match tensor.pieces.as_slice() {
            [piece] => self.weights.places(window, tensor, piece).map(Some),
            _ => Ok(None),
        }
    }

    /// Norm to ring, one dispatch for each weight type; nothing where a tensor has several pieces or the tensors
    /// have no window in common.
    fn qkv(&mut self, layer: u32, cache: &LayerCache) -> Result<Option<Vec<Step>>> {
        let name = |part: &str| layer_tensor(layer, part);
        let norm = self.tensor(&name("input_layernorm.weight"))?;
        let mut matrices = Vec::new();
        let mut biases = Vec::new();
        for part in ["q_proj", "k_proj", "v_proj"] {
            matrices.push(self.tensor(&name(&format!("self_attn.{part}.weight")))?);
            if self.setup.config().qkv_bias {
                biases.push(self.tensor(&name(&format!("self_attn.{part}.bias")))?);
            }
        }
        let kinds: Vec<VectorType> = biases
            .iter()
            .map(|tensor| vector_type(tensor))
            .collect::<Result<_>>()?;
        let all = [norm]
            .into_iter()
            .chain(matrices.iter().copied())
            .chain(biases.iter().copied());
        let Some(window) = self.weights.window(all) else {
            return Ok(None);
        };
        let mut places = Vec::new();
        for tensor in matrices.iter().chain(&biases) {
            match self.place(&window, tensor)? {
                Some(place) => places.push(place),
                None => return Ok(None),
            }
        }
        let Some(norm_place) = self.place(&window, norm)? else {
            return Ok(None);
        };
        if kinds.windows(2).any(|pair| pair[0] != pair[1]) {
            return Ok(None);
        }
        let bias_at = |index: usize| places.get(3 + index).map_or(0, |place| place.values);
        let shape = self.setup.heads();
        let quads = |heads: u32| heads * shape.head_dim / 4;
        let own = [
            quads(shape.heads),
            quads(shape.kv_heads),
            quads(shape.kv_heads),
        ];
        let mut steps = Vec::new();
        for (first, count, weight) in by_type(&matrices, own) {
            let lanes = lanes(4 * count, matrices[0].cols);
            let kernel = Kernel::Qkv {
                weight,
                norm: vector_type(norm)?,
                bias: kinds.first().copied(),
                lanes,
            };
            let params = QkvParams {
                q_at: places[0].values,
                q_scales_at: places[0].scales,
                q_bias_at: bias_at(0),
                k_at: places[1].values,
                k_scales_at: places[1].scales,
                k_bias_at: bias_at(1),
                v_at: places[2].values,
                v_scales_at: places[2].scales,
                v_bias_at: bias_at(2),
                norm_at: norm_place.values,
                cols: matrices[0].cols,
                eps: self.eps(),
                first_quad: first,
                quads: count,
                reserved_0: 0,
                reserved_1: 0,
            };
            let buffers = self.buffers;
            let (k, v, spans) = match self.setup.kv_format() {
                KvFormat::Sixteen => (&cache.k, &cache.v, &cache.spans),
                KvFormat::Int8 => (&buffers.k_chunk, &buffers.v_chunk, &buffers.chunk_spans),
            };
            let bindings = [
                ("state", buffers.state.as_entire_buffer_binding()),
                ("x", buffers.hidden.as_entire_buffer_binding()),
                ("values", window.binding.clone()),
                ("table", buffers.rope.as_entire_buffer_binding()),
                ("words", window.binding.clone()),
                ("q", buffers.q.as_entire_buffer_binding()),
                ("k_ring", k.as_entire_buffer_binding()),
                ("v_ring", v.as_entire_buffer_binding()),
                ("spans", spans.as_entire_buffer_binding()),
            ];
            let grid = Grid::Once((4 * count).div_ceil(lanes.rows()));
            steps.push(self.step_of_constants(kernel, bytes_of(&params), grid, &bindings));
        }
        if self.setup.kv_format() == KvFormat::Int8 {
            steps.push(self.commit(cache));
        }
        Ok(Some(steps))
    }

    /// Norm, gate, up and their joining, one dispatch a piece; nothing where the two matrices are not cut alike, not
    /// of one type, or share no window with the norm. And whether the results are codes for `down_proj`.
    fn gate_up(&mut self, layer: u32, down_proj: &str) -> Result<Option<(Vec<Step>, bool)>> {
        let name = |part: &str| layer_tensor(layer, part);
        let norm = self.tensor(&name("post_attention_layernorm.weight"))?;
        let gate = self.tensor(&name("mlp.gate_proj.weight"))?;
        let up = self.tensor(&name("mlp.up_proj.weight"))?;
        let alike = gate.dtype == up.dtype
            && gate.pieces.len() == up.pieces.len()
            && gate
                .pieces
                .iter()
                .zip(&up.pieces)
                .all(|(gate, up)| gate.rows == up.rows);
        let Some(window) = self.weights.window([norm, gate, up]).filter(|_| alike) else {
            return Ok(None);
        };
        let Some(norm_place) = self.place(&window, norm)? else {
            return Ok(None);
        };
        let weight = weight_type(gate.dtype);
        let codes = self.packed()
            && weight.has_scales()
            && self.tensor(down_proj)?.dtype == gate.dtype
            && gate
                .row_ranges()
                .all(|(rows, _)| (rows.start | rows.end).is_multiple_of(CODE_GROUP));
        let mut steps = Vec::new();
        for ((rows, gate_piece), up_piece) in gate.row_ranges().zip(&up.pieces) {
            let gate_place = self.weights.places(&window, gate, gate_piece)?;
            let up_place = self.weights.places(&window, up, up_piece)?;
            let count = rows.end - rows.start;
            let lanes = match lanes(2 * count, gate.cols) {
                // With fewer rows a workgroup has no whole group.
                Lanes::L64 if codes => Lanes::L32,
                lanes => lanes,
            };
            let params = GateUpParams {
                gate_at: gate_place.values,
                gate_scales_at: gate_place.scales,
                up_at: up_place.values,
                up_scales_at: up_place.scales,
                norm_at: norm_place.values,
                cols: gate.cols,
                eps: self.eps(),
                rows: count,
                row_offset: rows.start,
                reserved_0: 0,
                reserved_1: 0,
                reserved_2: 0,
            };
            let kernel = Kernel::GateUp {
                weight,
                norm: vector_type(norm)?,
                codes,
                lanes,
            };
            let buffers = self.buffers;
            let bindings = [
                ("state", buffers.state.as_entire_buffer_binding()),
                ("x", buffers.hidden.as_entire_buffer_binding()),
                ("values", window.binding.clone()),
                ("y", buffers.gate.as_entire_buffer_binding()),
                ("words", window.binding.clone()),
            ];
            let grid = Grid::Once((2 * count).div_ceil(lanes.rows()));
            steps.push(self.step_of_constants(kernel, bytes_of(&params), grid, &bindings));
        }
        Ok(Some((steps, codes)))
    }
}

/// Neighboring matrices of one type together: first quad, quads, type.
fn by_type(matrices: &[&TensorEntry], quads: [u32; 3]) -> Vec<(u32, u32, WeightType)> {
    let mut list: Vec<(u32, u32, WeightType)> = Vec::new();
    let mut first = 0;
    for (matrix, count) in matrices.iter().zip(quads) {
        let weight = weight_type(matrix.dtype);
        match list.last_mut() {
            Some((_, quads, last)) if *last == weight => *quads += count,
            _ => list.push((first, count, weight)),
        }
        first += count;
    }
    list
}
