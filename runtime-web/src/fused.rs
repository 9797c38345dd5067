//! Decode's dispatches with several operations each: norms, biases, rotation, the way into the ring, gates and
//! residuals inside the projections. Six to a layer: qkv, attention in parts, their joining, `o_proj`, gate and up, down;
//! seven where keys and values are rounded to bytes, for which a workgroup must see a whole row.
//!
//! Where the variant packs inputs, a token travels as codes: attention's results and those of the gate for the products with
//! a residual, and these leave the token itself as codes for the next norm's products. The token in f32 is always there
//! too, so that each product takes what it can.
//!
//! A fused kernel binds one window of a weight buffer and finds its tensors by their places. Where tensors do not
//! share a window or a type, the kernels of `separate` take their part; nothing else differs.

use bytemuck::bytes_of;
use moa_format::{FINAL_NORM, TensorEntry, layer_tensor};
use moa_mask::KvFormat;
use moa_mask::abi::{CODE_GROUP, GateUpParams, QUANT_GROUP, QkvParams};
use moa_shaders::{Inputs, Kernel, Lanes, VectorType, WeightType};

use crate::buffers::LayerCache;
use crate::error::Result;
use crate::program::{Builder, MAX_WORKGROUPS};
use crate::setup::{vector_type, weight_type};
use crate::step::{Grid, Step};
use crate::weights::{Places, WeightBuffers, Window};

/// Rows of a matrix from which on 16 threads share four of them: enough workgroups for every core even so.
const MANY_ROWS: u32 = 8192;
/// Columns up to which 32 threads have a group of them each.
const SHORT_ROW: u32 = 32 * QUANT_GROUP;

/// A product with the token in flight.
struct Projection<'a> {
    x: &'a wgpu::Buffer,
    y: &'a wgpu::Buffer,
    /// Whether the product is added to what is there.
    add: bool,
    inputs: Inputs,
    /// The name of a norm in the load, or of that for which codes are left.
    norm: Option<&'a str>,
    /// How that one's weights are stored, if codes are left.
    leaves: Option<VectorType>,
}

/// What `qkv` reads, and where it lies in one window: matrices and then biases, and the norm.
struct QkvPlaces<'a> {
    window: Window<'a>,
    matrices: Vec<&'a TensorEntry>,
    places: Vec<Places>,
    bias: Option<VectorType>,
    norm: VectorType,
    norm_place: Places,
}

/// What `gate_up` reads, and where it lies in one window.
struct GateUpPlaces<'a> {
    window: Window<'a>,
    gate: &'a TensorEntry,
    up: &'a TensorEntry,
    norm: VectorType,
    norm_place: Places,
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

/// How rows of codes are shared, one row to a set: 32 threads have all groups of a short row at once, and waste less
/// than 64 where these would have half of a second round to do.
const fn lanes_of_codes(cols: u32) -> Lanes {
    if cols <= SHORT_ROW || (cols > 2 * SHORT_ROW && cols <= 3 * SHORT_ROW) {
        Lanes::L32One
    } else {
        Lanes::L64One
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
        let attended = self.packed() && self.quantized(&o_proj)?;
        steps.extend(self.attend_decode(cache, attended));
        let norm = name("post_attention_layernorm.weight");
        let gates = self.gate_up_places(layer)?;
        let quantized = |gates: &GateUpPlaces<'_>| weight_type(gates.gate.dtype).has_scales();
        let takes = gates.as_ref().is_some_and(quantized);
        let left = self.residual(&o_proj, &buffers.attended, attended, &norm, takes)?;
        steps.extend(left.0);
        let down_proj = name("mlp.down_proj.weight");
        let (gate_up, codes) = match gates {
            Some(gates) => self.gate_up(&gates, &down_proj, left.1)?,
            None => (gate_up, false),
        };
        steps.extend(gate_up);
        let (norm, takes) = if layer + 1 < self.setup.config().layers {
            let norm = layer_tensor(layer + 1, "input_layernorm.weight");
            (norm, codes && self.qkv_takes_codes(layer + 1)?)
        } else {
            let lm_head = self.setup.config().lm_head();
            (FINAL_NORM.to_owned(), self.quantized(lm_head)?)
        };
        let left = self.residual(&down_proj, &buffers.gate, codes, &norm, takes)?;
        steps.extend(left.0);
        self.arrives_as_codes = left.1;
        Ok(steps)
    }

    /// A product of `x`, or of the codes beside it, that is added to the token in flight; and whether it leaves the token as
    /// codes that have met `norm`, for which whoever comes next must take them.
    fn residual(
        &mut self,
        name: &str,
        x: &'a wgpu::Buffer,
        of_codes: bool,
        norm: &str,
        takes: bool,
    ) -> Result<(Vec<Step>, bool)> {
        let buffers = self.buffers;
        let tensor = self.tensor(name)?;
        let leaves = of_codes
            && takes
            && self
                .weights
                .runs(tensor)?
                .iter()
                .all(|run| (run.row_offset | run.rows).is_multiple_of(CODE_GROUP));
        let kind = vector_type(self.tensor(norm)?)?;
        let steps = self.project(
            name,
            &Projection {
                x: if of_codes { &buffers.codes } else { x },
                y: &buffers.hidden,
                add: true,
                inputs: if of_codes {
                    Inputs::Codes
                } else {
                    Inputs::Plain
                },
                norm: leaves.then_some(norm),
                leaves: leaves.then_some(kind),
            },
        )?;
        Ok((steps, leaves))
    }

    /// Final norm and `lm_head` of the last token in flight, or of the codes that the last layer has left of it.
    pub(crate) fn fused_logits(&mut self, of_codes: bool) -> Result<Vec<Step>> {
        let buffers = self.buffers;
        let norm = vector_type(self.tensor(FINAL_NORM)?)?;
        self.project(
            self.setup.config().lm_head(),
            &Projection {
                x: self.token(of_codes),
                y: &buffers.logits,
                add: false,
                inputs: normed(norm, of_codes),
                norm: (!of_codes).then_some(FINAL_NORM),
                leaves: None,
            },
        )
    }

    /// The token in flight, as it is or as codes.
    fn token(&self, as_codes: bool) -> &'a wgpu::Buffer {
        if as_codes {
            &self.buffers.hidden_codes
        } else {
            &self.buffers.hidden
        }
    }

    fn quantized(&self, name: &str) -> Result<bool> {
        Ok(weight_type(self.tensor(name)?.dtype).has_scales())
    }

    /// One dispatch for as many pieces of a matrix as one binding holds.
    fn project(&mut self, name: &str, projection: &Projection<'_>) -> Result<Vec<Step>> {
        let (weights, buffers) = (self.weights, self.buffers);
        let tensor = self.tensor(name)?;
        let norm = projection.norm.map(|norm| self.vector(norm)).transpose()?;
        let mut steps = Vec::new();
        for run in weights.runs(tensor)? {
            let params = self.run_params(&run);
            let lanes = match (projection.inputs, projection.leaves) {
                // A workgroup with a whole group of outputs has eight rows.
                (Inputs::Codes, Some(_)) if run.cols > SHORT_ROW && self.wide() => Lanes::L64Wide,
                (Inputs::Codes, Some(_)) => Lanes::L32One,
                (Inputs::Codes | Inputs::NormedCodes, None) => {
                    let lanes = lanes_of_codes(run.cols);
                    if run.rows.div_ceil(lanes.rows()) > MAX_WORKGROUPS {
                        Lanes::L16
                    } else {
                        lanes
                    }
                }
                (inputs, _) => match lanes(run.rows, run.cols) {
                    Lanes::L64 if inputs == Inputs::Plain => Lanes::L64Two,
                    lanes => lanes,
                },
            };
            let kernel = Kernel::Project {
                weight: run.weight,
                inputs: projection.inputs,
                add: projection.add,
                leaves: projection.leaves,
                lanes,
            };
            let mut bindings = vec![
                ("state", buffers.state.as_entire_buffer_binding()),
                ("x", projection.x.as_entire_buffer_binding()),
                ("values", run.window.binding.clone()),
                ("y", projection.y.as_entire_buffer_binding()),
                ("words", run.window.binding.clone()),
                ("codes", buffers.hidden_codes.as_entire_buffer_binding()),
            ];
            bindings.extend(norm.clone().map(|(_, vector)| ("vector", vector)));
            let grid = Grid::Once(run.rows.div_ceil(lanes.rows()));
            steps.push(self.step_of_constants(kernel, bytes_of(&params), grid, &bindings));
        }
        Ok(steps)
    }

    /// The one piece of a tensor in a window.
    fn place(&self, window: &Window<'_>, tensor: &TensorEntry) -> Result<Option<Places>> {
        match tensor.pieces.as_slice() {
            [piece] => self.weights.places(window, tensor, piece).map(Some),
            _ => Ok(None),
        }
    }

    /// Where what `qkv` reads lies; nothing where a tensor has several pieces or the tensors have no window in common.
    fn qkv_places(&self, layer: u32) -> Result<Option<QkvPlaces<'a>>> {
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
        let weights: &'a WeightBuffers = self.weights;
        let Some(window) = weights.window(all) else {
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
        Ok(Some(QkvPlaces {
            window,
            matrices,
            places,
            bias: kinds.first().copied(),
            norm: vector_type(norm)?,
            norm_place,
        }))
    }

    /// Whether `qkv` of a layer takes codes, if there are any.
    fn qkv_takes_codes(&self, layer: u32) -> Result<bool> {
        let own = self.qkv_places(layer)?;
        let quantized = |tensor: &&TensorEntry| weight_type(tensor.dtype).has_scales();
        Ok(own.is_some_and(|own| own.matrices.iter().all(quantized)))
    }

    /// Norm to ring, one dispatch for each weight type.
    fn qkv(&mut self, layer: u32, cache: &LayerCache) -> Result<Option<Vec<Step>>> {
        let Some(own) = self.qkv_places(layer)? else {
            return Ok(None);
        };
        let (places, matrices) = (&own.places, &own.matrices);
        let of_codes = self.arrives_as_codes;
        let bias_at = |index: usize| places.get(3 + index).map_or(0, |place| place.values);
        let shape = self.setup.heads();
        let quads = |heads: u32| heads * shape.head_dim / 4;
        let counts = [
            quads(shape.heads),
            quads(shape.kv_heads),
            quads(shape.kv_heads),
        ];
        let mut steps = Vec::new();
        for (first, count, weight) in by_type(matrices, counts) {
            let cols = matrices[0].cols;
            let lanes = if of_codes {
                lanes_of_codes(cols)
            } else {
                lanes(4 * count, cols)
            };
            let kernel = Kernel::Qkv {
                weight,
                inputs: normed(own.norm, of_codes),
                bias: own.bias,
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
                norm_at: own.norm_place.values,
                cols,
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
                ("x", self.token(of_codes).as_entire_buffer_binding()),
                ("values", own.window.binding.clone()),
                ("table", buffers.rope.as_entire_buffer_binding()),
                ("words", own.window.binding.clone()),
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

    /// Where what `gate_up` reads lies; nothing where the two matrices are not cut alike, not of one type, or share no
    /// window with the norm.
    fn gate_up_places(&self, layer: u32) -> Result<Option<GateUpPlaces<'a>>> {
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
        let weights: &'a WeightBuffers = self.weights;
        let Some(window) = weights.window([norm, gate, up]).filter(|_| alike) else {
            return Ok(None);
        };
        let norm_place = self.place(&window, norm)?;
        let norm = vector_type(norm)?;
        Ok(norm_place.map(|norm_place| GateUpPlaces {
            window,
            gate,
            up,
            norm,
            norm_place,
        }))
    }

    /// Norm, gate, up and their joining, one dispatch a piece, of the token or of codes. And whether the results are codes
    /// for `down_proj`.
    fn gate_up(
        &mut self,
        own: &GateUpPlaces<'_>,
        down_proj: &str,
        of_codes: bool,
    ) -> Result<(Vec<Step>, bool)> {
        let (gate, up) = (own.gate, own.up);
        let weight = weight_type(gate.dtype);
        let codes = self.packed()
            && self.quantized(down_proj)?
            && gate
                .row_ranges()
                .all(|(rows, _)| (rows.start | rows.end).is_multiple_of(CODE_GROUP));
        let mut steps = Vec::new();
        for ((rows, gate_piece), up_piece) in gate.row_ranges().zip(&up.pieces) {
            let gate_place = self.weights.places(&own.window, gate, gate_piece)?;
            let up_place = self.weights.places(&own.window, up, up_piece)?;
            let count = rows.end - rows.start;
            let lanes = match lanes(2 * count, gate.cols) {
                _ if of_codes && gate.cols <= SHORT_ROW => Lanes::L32Two,
                _ if of_codes => Lanes::L32,
                lanes => lanes,
            };
            let params = GateUpParams {
                gate_at: gate_place.values,
                gate_scales_at: gate_place.scales,
                up_at: up_place.values,
                up_scales_at: up_place.scales,
                norm_at: own.norm_place.values,
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
                inputs: normed(own.norm, of_codes),
                codes,
                lanes,
            };
            let buffers = self.buffers;
            let bindings = [
                ("state", buffers.state.as_entire_buffer_binding()),
                ("x", self.token(of_codes).as_entire_buffer_binding()),
                ("values", own.window.binding.clone()),
                ("y", buffers.gate.as_entire_buffer_binding()),
                ("words", own.window.binding.clone()),
                ("codes", buffers.codes.as_entire_buffer_binding()),
            ];
            let grid = Grid::Once((2 * count).div_ceil(lanes.rows()));
            steps.push(self.step_of_constants(kernel, bytes_of(&params), grid, &bindings));
        }
        Ok((steps, codes))
    }
}

/// The token behind a norm: in the load, or in the codes.
const fn normed(norm: VectorType, of_codes: bool) -> Inputs {
    if of_codes {
        Inputs::NormedCodes
    } else {
        Inputs::Norm(norm)
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
