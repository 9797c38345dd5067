//! Influence: one forward pass that saves each layer's inputs, then layer by layer backwards.
//!
//! Each layer is recomputed from what was saved: no attention output, no score and no MLP activation outlives
//! its layer, so memory is O(layers * N * hidden) and one layer's worth. Only activations have gradients.

use crate::lm::{Mid, Run, Saved};
use crate::observer::{Observer, Phase, Step, check};
use crate::weights::LayerWeights;
use crate::{
    AttentionBackward, BlockMaps, Device, Estimator, Influence, Keep, LayerInfluence, Lm, LmError,
    LossKind, ProfileOptions, Result, Sample, Turn,
};

/// What sums of gradients are multiplied by to be costs.
struct Units {
    /// What each gradient is: temperature and the device's scale taken off.
    once: f64,
    /// Target tokens, over which the loss is a mean.
    targets: f64,
}

impl<D: Device> Lm<D> {
    /// What every span of every KV head would cost on one sample.
    pub fn influence(
        &self,
        sample: &Sample,
        options: &ProfileOptions<'_>,
        observer: &dyn Observer,
    ) -> Result<Influence> {
        // Far from the dense model gradients are steep, and 16-bit devices run over: then smaller ones.
        let scale = self.device.gradient_scale();
        let mut result = self.backward(sample, options, scale, observer);
        for smaller in [scale / 256.0, scale / 65_536.0] {
            if scale == 1.0 || !matches!(result, Err(LmError::NotFinite { .. })) {
                break;
            }
            result = self.backward(sample, options, smaller, observer);
        }
        Ok(result?.0)
    }

    /// The influence, and the gradient of the loss with respect to the embedded tokens, which tests check.
    fn backward(
        &self,
        sample: &Sample,
        options: &ProfileOptions<'_>,
        gradient_scale: f64,
        observer: &dyn Observer,
    ) -> Result<(Influence, D::Buffer)> {
        if options.blocks == Some(0) {
            return Err(LmError::BadOption {
                what: "blocks",
                got: "0".into(),
                expected: "at least 1 token",
            });
        }
        let masks = self.masks(options.at)?;
        let loss_rows = self.loss_rows(sample, options.loss, options.temperature, observer)?;
        let mut saved = Vec::with_capacity(self.weights.layers.len());
        let x = self.forward(
            &sample.ids,
            masks,
            Phase::Forward,
            observer,
            Some(&mut saved),
        )?;
        let (loss, d_x) = self.loss_at(&x, &loss_rows, observer, Some(gradient_scale))?;
        let mut d_x = match d_x {
            Some(d_x) => d_x,
            None => self.device.zeros(self.device.len(&x), Keep::Full)?,
        };
        drop(x);

        let run = self.run(&sample.ids, 0, masks)?;
        let mut layers = Vec::with_capacity(saved.len());
        while let Some(inputs) = saved.pop() {
            check(observer)?;
            let index = saved.len();
            let (d_input, influence) = self.layer_backward(index, &run, inputs, d_x, options)?;
            d_x = d_input;
            layers.push(influence);
            observer.step(Step {
                phase: Phase::Backward,
                done: self.config.layers - crate::lm::count(index)?,
                total: self.config.layers,
            });
        }
        layers.reverse();
        let temperature = options.temperature.unwrap_or(1.0);
        let to_logits = match options.loss {
            LossKind::CrossEntropy => temperature,
            // A divergence is of second order in what happens to logits.
            LossKind::KlToDense => temperature * temperature,
        };
        let units = Units {
            once: to_logits / gradient_scale,
            targets: loss_rows.rows.len() as f64,
        };
        let influence = self.assemble(sample.ids.len(), loss, layers, options, &units);
        let curves = influence.curves.iter().flatten();
        if !loss.is_finite() || curves.into_iter().any(|cost| !cost.is_finite()) {
            return Err(LmError::NotFinite {
                device: self.device.label(),
            });
        }
        Ok((influence, d_x))
    }

    /// A layer's backward: from the gradient of its output to that of its input.
    fn layer_backward(
        &self,
        index: usize,
        run: &Run<'_, D::Buffer>,
        saved: Saved<D::Buffer>,
        d_output: D::Buffer,
        options: &ProfileOptions<'_>,
    ) -> Result<(D::Buffer, LayerInfluence)> {
        let (layer, device) = (&self.weights.layers[index], &self.device);
        let Saved { input, attended } = saved;
        let (Mid { x: mid, lse }, early) = match attended {
            Some(attended) => (attended, None),
            None => {
                let qkv = self.project(layer, &input, &run.rope)?;
                let x = device.copy(&input)?;
                (self.attention(layer, index, run, &qkv, x, None)?, Some(qkv))
            }
        };
        let d_mid = self.mlp_backward(layer, mid, d_output)?;
        let d_o = device.matmul_backward(&d_mid, &layer.o, None, Keep::Working)?;
        let qkv = match early {
            Some(qkv) => qkv,
            None => self.project(layer, &input, &run.rope)?,
        };
        let gradients = device.attention_backward(&AttentionBackward {
            shape: self.shape,
            projected: qkv.at(run.start),
            masks: run.masks.layer(index),
            lse: &lse,
            d_o: &d_o,
            grid: options.grid,
            per_entry: options.per_entry,
            blocks: options.blocks.map(|block| block as usize),
        })?;
        drop((qkv, d_o, lse));
        let (mut d_q, mut d_k) = (gradients.d_q, gradients.d_k);
        device.rope(&mut d_q, self.shape.heads, &run.rope, Turn::Backward)?;
        device.rope(&mut d_k, self.shape.kv_heads, &run.rope, Turn::Backward)?;
        let d_h = device.matmul_backward(&d_q, &layer.q, None, Keep::Full)?;
        let d_h = device.matmul_backward(&d_k, &layer.k, Some(d_h), Keep::Full)?;
        let d_h = device.matmul_backward(&gradients.d_v, &layer.v, Some(d_h), Keep::Full)?;
        let eps = self.config.rms_norm_eps;
        let d_input =
            device.rms_norm_backward(&input, &layer.attention_norm, &d_h, eps, Some(d_mid))?;
        Ok((d_input, gradients.influence))
    }

    /// From the gradient of a layer's output to that of the residual stream before its MLP.
    fn mlp_backward(
        &self,
        layer: &LayerWeights<D::Buffer>,
        mid: D::Buffer,
        d_output: D::Buffer,
    ) -> Result<D::Buffer> {
        let device = &self.device;
        let h = self.norm(&mid, &layer.ffn_norm)?;
        let gate = device.matmul(&h, &layer.gate, None, Keep::Working)?;
        let up = device.matmul(&h, &layer.up, None, Keep::Working)?;
        drop(h);
        let d_act = device.matmul_backward(&d_output, &layer.down, None, Keep::Working)?;
        let (d_gate, d_up) = device.swiglu_backward(gate, up, &d_act)?;
        drop(d_act);
        let d_h = device.matmul_backward(&d_gate, &layer.gate, None, Keep::Full)?;
        drop(d_gate);
        let d_h = device.matmul_backward(&d_up, &layer.up, Some(d_h), Keep::Full)?;
        drop(d_up);
        device.rms_norm_backward(
            &mid,
            &layer.ffn_norm,
            &d_h,
            self.config.rms_norm_eps,
            Some(d_output),
        )
    }

    /// Puts the layers' shares one after another, and takes the device's gradient scale off.
    fn assemble(
        &self,
        len: usize,
        loss: f64,
        layers: Vec<LayerInfluence>,
        options: &ProfileOptions<'_>,
        units: &Units,
    ) -> Influence {
        let mut influence = Influence {
            loss,
            layers: layers.len(),
            kv_heads: self.shape.kv_heads,
            bins: len.div_ceil(options.grid.block() as usize),
            curves: Default::default(),
            maps: options.blocks.map(|block| BlockMaps {
                heads: self.shape.heads,
                side: len.div_ceil(block as usize),
                abs: Vec::new(),
                signed: Vec::new(),
            }),
        };
        let once = units.once;
        for layer in layers {
            for (estimator, curve) in Estimator::ALL.into_iter().zip(layer.curves) {
                let scale = match estimator {
                    Estimator::JointSquare => once * once * units.targets / 2.0,
                    _ => once,
                };
                influence.curves[estimator.index()].extend(curve.iter().map(|cost| cost * scale));
            }
            if let Some(maps) = &mut influence.maps {
                maps.abs.extend(layer.abs.iter().map(|sum| sum * once));
                maps.signed
                    .extend(layer.signed.iter().map(|sum| sum * once));
            }
        }
        influence
    }
}

#[cfg(test)]
mod tests {
    use moa_mask::{HeadMask, ModelMasks};

    use super::*;
    use crate::Targets;
    use crate::random_model::model;

    /// The derivative of the loss along a direction in the embedding, by the backward and by differences.
    #[test]
    fn the_backward_is_the_slope_of_the_loss() {
        let mut lm = model();
        let hidden = 48;
        let sample = Sample {
            ids: (0..90u32).map(|i| (i * i + 3 * i) % 101).collect(),
            targets: Targets::At((20..90).step_by(3).collect()),
        };
        let masks = ModelMasks::uniform(
            2,
            2,
            HeadMask {
                sink: 4,
                window: 20,
            },
        );
        for (at, kind, temperature) in [
            (None, LossKind::CrossEntropy, None),
            (Some(&masks), LossKind::CrossEntropy, None),
            (Some(&masks), LossKind::CrossEntropy, Some(0.5)),
            (Some(&masks), LossKind::KlToDense, None),
            (Some(&masks), LossKind::KlToDense, Some(0.5)),
        ] {
            // The dense model of KL stays where it is while the masked one moves.
            let teacher = lm.loss_rows(&sample, kind, temperature, &()).unwrap();
            let options = ProfileOptions {
                at,
                loss: kind,
                temperature,
                ..Default::default()
            };
            let gradient = lm.backward(&sample, &options, 1.0, &()).unwrap().1;
            for first in [0, 13, 50] {
                // A few tokens move, each its own way.
                let direction = |id: u32, channel: usize| {
                    if id as usize % 7 == first % 7 {
                        ((id as usize * 31 + channel * 17 + first) as f32).sin()
                    } else {
                        0.0
                    }
                };
                let along = |ids: &[u32]| -> f64 {
                    let rows = ids.iter().zip(gradient.chunks_exact(hidden));
                    rows.map(|(&id, row)| {
                        row.iter()
                            .enumerate()
                            .map(|(c, d)| f64::from(d * direction(id, c)))
                            .sum::<f64>()
                    })
                    .sum()
                };
                let mut loss = |step: f32| {
                    for id in 0..101 {
                        for channel in 0..hidden {
                            lm.weights.embedding.weight[id as usize * hidden + channel] +=
                                step * direction(id, channel);
                        }
                    }
                    let x = lm
                        .forward(
                            &sample.ids,
                            lm.masks(at).unwrap(),
                            Phase::Forward,
                            &(),
                            None,
                        )
                        .unwrap();
                    lm.loss_at(&x, &teacher, &(), None).unwrap().0
                };
                let mut slope_over = |step: f32| {
                    let (above, below) = (loss(step), loss(-2.0 * step));
                    loss(step);
                    (above - below) / (2.0 * f64::from(step))
                };
                // The cubic term cancels between two steps.
                let slope = (4.0 * slope_over(1.0 / 1024.0) - slope_over(1.0 / 512.0)) / 3.0;
                let expected = along(&sample.ids);
                println!("{kind:?} {temperature:?}: slope {slope:.5}, gradient {expected:.5}");
                assert!(
                    (slope - expected).abs() < 0.01 * expected.abs() + 1e-3,
                    "{slope} {expected}"
                );
                let shifted: Vec<u32> = sample.ids.iter().map(|id| (id + 1) % 101).collect();
                assert!(
                    (slope - along(&shifted)).abs() > 0.01 * expected.abs() + 1e-3,
                    "another direction"
                );
            }
        }
    }
}
