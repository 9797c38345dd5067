//! A gate and an up projection in a weight file with their norm, and `gate_up` run on them: what its tests share, whichever way
//! its outputs are written.

use bytemuck::bytes_of;
use moa_mask::abi::GateUpParams;
use moa_reference::gate_up::gate_up;
use moa_reference::project::Norm;
use moa_shaders::{Dialect, Inputs, Kernel, Lanes, VectorType, WeightType};
use moa_tests::gpu::{Data, test_gpu_in};
use moa_tests::random::Random;

use crate::file::File;
use crate::fused::{EPS, SHAPE};
use crate::state;

/// What goes in, what comes out, and how work is shared.
#[derive(Clone, Copy)]
pub(crate) struct Way {
    pub(crate) of_codes: bool,
    pub(crate) codes: bool,
    pub(crate) lanes: Lanes,
}

pub(crate) struct Gates {
    file: File,
    weight: WeightType,
    kind: VectorType,
    params: GateUpParams,
    /// The norm's weights as they are stored.
    pub(crate) norm: Vec<f32>,
    gate: Vec<f64>,
    up: Vec<f64>,
}

impl Gates {
    /// Random matrices of `rows` rows, which are written from `row_offset` on.
    pub(crate) fn new(
        random: &mut Random,
        (weight, kind): (WeightType, VectorType),
        norm: &[f32],
        rows: u32,
        row_offset: u32,
    ) -> Self {
        let cols = u32::try_from(norm.len()).unwrap();
        let mut file = File::default();
        let (norm_at, norm) = file.vector(kind, norm);
        let (gate_at, gate_scales_at, gate) = file.matrix(random, weight, rows, cols);
        let (up_at, up_scales_at, up) = file.matrix(random, weight, rows, cols);
        let params = GateUpParams {
            gate_at,
            gate_scales_at,
            up_at,
            up_scales_at,
            norm_at,
            cols,
            eps: EPS,
            rows,
            row_offset,
            ..GateUpParams::default()
        };
        Self {
            file,
            weight,
            kind,
            params,
            norm,
            gate,
            up,
        }
    }

    /// The kernel and the workgroups that it takes.
    fn kernel(&self, way: Way) -> (Kernel, u32) {
        let kernel = Kernel::GateUp {
            weight: self.weight,
            inputs: if way.of_codes {
                Inputs::NormedCodes
            } else {
                Inputs::Norm(self.kind)
            },
            codes: way.codes,
            lanes: way.lanes,
        };
        (kernel, (2 * self.params.rows).div_ceil(way.lanes.rows()))
    }

    pub(crate) fn label(&self, dialect: Dialect, way: Way) -> String {
        let (kernel, _) = self.kernel(way);
        let GateUpParams { rows, cols, .. } = self.params;
        format!("{} {rows} x {cols}", kernel.label_in(SHAPE, dialect))
    }

    fn twin(&self, x: &[f32], gate: &[f64], up: &[f64]) -> Vec<f64> {
        let norm = Norm {
            weight: &self.norm,
            eps: EPS.into(),
        };
        gate_up(x, norm, gate, up)
    }

    /// What the twin says.
    pub(crate) fn expected(&self, x: &[f32]) -> Vec<f64> {
        self.twin(x, &self.gate, &self.up)
    }

    /// What it says where one matrix is taken for the other.
    pub(crate) fn swapped(&self, x: &[f32]) -> Vec<f64> {
        self.twin(x, &self.up, &self.gate)
    }

    /// The `words` of y, or of the codes, after `tokens` tokens.
    pub(crate) fn run(
        &self,
        dialect: Dialect,
        way: Way,
        x: &[u32],
        tokens: u32,
        words: usize,
    ) -> Vec<u32> {
        let (kernel, workgroups) = self.kernel(way);
        let out = if way.codes { "codes" } else { "y" };
        let outputs = test_gpu_in(dialect).run(
            kernel,
            SHAPE,
            (workgroups, 1),
            &[
                ("params", Data::Bytes(bytes_of(&self.params))),
                ("state", Data::U32(&state(0, tokens))),
                ("x", Data::U32(x)),
                ("values", Data::Bytes(&self.file.bytes)),
                ("words", Data::Bytes(&self.file.bytes)),
                (out, Data::Poison(words)),
            ],
        );
        outputs[out].clone()
    }
}
