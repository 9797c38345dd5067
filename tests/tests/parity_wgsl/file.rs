//! A weight file in memory, for kernels that find several tensors in one binding.

use bytemuck::cast_slice;
use moa_mask::abi::{PLACE_BYTES, ProjectParams};
use moa_shaders::{VectorType, WeightType};
use moa_tests::attention::{packed, unpacked};
use moa_tests::random::Random;

use crate::bits;
use crate::fused::EPS;
use crate::matrices::{offsets, piece};

/// Tensors one after the other as a weight file has them, with something else before and between.
#[derive(Default)]
pub(crate) struct File {
    pub(crate) bytes: Vec<u8>,
}

impl File {
    /// Appends a tensor's bytes and returns their place.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> u32 {
        let place = PLACE_BYTES as usize;
        // NaN, and bytes that are none of the tensors'.
        self.bytes
            .resize(self.bytes.len().next_multiple_of(place), 0x7f);
        let at = self.bytes.len() / place;
        self.bytes.extend_from_slice(bytes);
        u32::try_from(at).unwrap()
    }

    /// A matrix: places of its values and its scales, and what it means.
    pub(crate) fn matrix(
        &mut self,
        random: &mut Random,
        weight: WeightType,
        rows: u32,
        cols: u32,
    ) -> (u32, u32, Vec<f64>) {
        let (at, scales_at, weights, _) = self.matrix_and_offsets(random, weight, rows, cols);
        (at, scales_at, weights)
    }

    /// The same, and what all weights of a group have in common.
    pub(crate) fn matrix_and_offsets(
        &mut self,
        random: &mut Random,
        weight: WeightType,
        rows: u32,
        cols: u32,
    ) -> (u32, u32, Vec<f64>, Vec<f64>) {
        let (bytes, weights) = piece(random, weight, rows, cols);
        let at = self.push(&bytes);
        let offsets = offsets(weight, &bytes, &weights);
        (at, at + scales_step(weight, rows, cols), weights, offsets)
    }

    /// A matrix in pieces of so many rows: where they lie, for a product that is written from `row_offset` on, what they
    /// mean, and what all weights of a group have in common.
    pub(crate) fn pieces(
        &mut self,
        random: &mut Random,
        weight: WeightType,
        (pieces, cols): (&[u32], u32),
        row_offset: u32,
    ) -> (ProjectParams, Vec<f64>, Vec<f64>) {
        let (mut weights, mut offsets, mut places) = (Vec::new(), Vec::new(), Vec::new());
        for &rows in pieces {
            let (at, scales_at, own, own_offsets) =
                self.matrix_and_offsets(random, weight, rows, cols);
            weights.extend(own);
            offsets.extend(own_offsets);
            places.push((at, scales_at - at));
        }
        let params = ProjectParams {
            rows: pieces.iter().sum(),
            cols,
            row_offset,
            piece_rows: pieces[0],
            piece_step: places.get(1).map_or(0, |(at, _)| at - places[0].0),
            scales_step: places[0].1,
            last_scales_step: places[places.len() - 1].1,
            eps: EPS,
        };
        (params, weights, offsets)
    }

    /// A vector: its place, and what it means.
    pub(crate) fn vector(&mut self, kind: VectorType, values: &[f32]) -> (u32, Vec<f32>) {
        let (words, stored) = vector_words(kind, values);
        (self.push(cast_slice(&words)), stored)
    }
}

pub(crate) fn vector_words(kind: VectorType, values: &[f32]) -> (Vec<u32>, Vec<f32>) {
    match kind {
        VectorType::F16 => (packed(values), unpacked(&packed(values))),
        VectorType::F32 => (bits(values), values.to_vec()),
    }
}

pub(crate) fn scales_step(weight: WeightType, rows: u32, cols: u32) -> u32 {
    let bits = match weight {
        WeightType::Q4 => 4,
        WeightType::Q8 => 8,
        WeightType::F16 => 16,
        WeightType::F32 => 32,
    };
    (rows * cols * bits / 8).div_ceil(PLACE_BYTES)
}
