//! The losses: mean cross entropy of target tokens, and mean KL divergence from the dense model.
//!
//! The output projection runs only on rows that carry loss, some rows at a time.

use moa_mask::ModelMasks;

use crate::lm::count;
use crate::observer::{Observer, Phase, check};
use crate::{Device, Keep, Lm, LmError, LossKind, Result, Sample};

/// Rows that carry loss, and what they are compared with.
#[derive(Debug)]
pub(crate) struct LossRows<B> {
    /// Rows, ascending.
    pub(crate) rows: Vec<u32>,
    targets: Vec<u32>,
    /// The dense model's final rows, normed, where KL is the loss.
    teacher: Option<B>,
    /// The final norm with the temperature in its weight, where there is one: logits are linear in it.
    final_norm: Option<B>,
}

impl<D: Device> Lm<D> {
    /// Mean cross entropy in nats of a sample's target tokens.
    pub fn loss(
        &self,
        sample: &Sample,
        masks: Option<&ModelMasks>,
        observer: &dyn Observer,
    ) -> Result<f64> {
        self.loss_of(sample, masks, LossKind::CrossEntropy, observer)
    }

    /// Mean KL divergence in nats of the masked model's predictions of target tokens from the dense model's.
    pub fn kl_to_dense(
        &self,
        sample: &Sample,
        masks: Option<&ModelMasks>,
        observer: &dyn Observer,
    ) -> Result<f64> {
        self.loss_of(sample, masks, LossKind::KlToDense, observer)
    }

    fn loss_of(
        &self,
        sample: &Sample,
        masks: Option<&ModelMasks>,
        kind: LossKind,
        observer: &dyn Observer,
    ) -> Result<f64> {
        let masks = self.masks(masks)?;
        let rows = self.loss_rows(sample, kind, None, observer)?;
        let x = self.forward(&sample.ids, masks, Phase::Forward, observer, None)?;
        Ok(self.loss_at(&x, &rows, observer, None)?.0)
    }

    /// Finds the rows that carry loss, and runs the dense model where KL asks for it.
    pub(crate) fn loss_rows(
        &self,
        sample: &Sample,
        kind: LossKind,
        temperature: Option<f64>,
        observer: &dyn Observer,
    ) -> Result<LossRows<D::Buffer>> {
        self.check_ids(&sample.ids)?;
        let (rows, targets) = sample.rows_and_targets()?;
        let final_norm = temperature
            .map(|value| self.cooled_norm(value))
            .transpose()?;
        let teacher = match kind {
            LossKind::CrossEntropy => None,
            LossKind::KlToDense => {
                let x = self.forward(&sample.ids, &self.dense, Phase::Teacher, observer, None)?;
                let weight = final_norm.as_ref().unwrap_or(&self.weights.final_norm);
                Some(self.normed_rows(&x, &rows, weight)?)
            }
        };
        Ok(LossRows {
            rows,
            targets,
            teacher,
            final_norm,
        })
    }

    /// The final norm's weight divided by a temperature.
    fn cooled_norm(&self, temperature: f64) -> Result<D::Buffer> {
        if !(temperature > 0.0 && temperature.is_finite()) {
            return Err(LmError::BadOption {
                what: "temperature",
                got: temperature.to_string(),
                expected: "more than 0",
            });
        }
        let mut weight = self.device.download(&self.weights.final_norm)?;
        for value in &mut weight {
            #[expect(clippy::cast_possible_truncation, reason = "a weight is f32")]
            let cooled = (f64::from(*value) / temperature) as f32;
            *value = cooled;
        }
        self.device.upload(weight)
    }

    /// The loss, and where a scale is given its gradient with respect to the final residual stream `x`, times that scale.
    pub(crate) fn loss_at(
        &self,
        x: &D::Buffer,
        loss_rows: &LossRows<D::Buffer>,
        observer: &dyn Observer,
        gradient_scale: Option<f64>,
    ) -> Result<(f64, Option<D::Buffer>)> {
        let hidden = self.config.hidden_dim as usize;
        let rows = &loss_rows.rows;
        let final_norm = loss_rows.final_norm.as_ref();
        let final_norm = final_norm.unwrap_or(&self.weights.final_norm);
        let scale = 1.0 / f64::from(count(rows.len())?);
        let larger = scale * gradient_scale.unwrap_or(1.0);
        let mut loss = 0.0;
        let mut d_x = if gradient_scale.is_some() {
            Some(self.device.zeros(self.device.len(x), Keep::Full)?)
        } else {
            None
        };
        let at_once = self.logit_rows();
        for (index, (rows, targets)) in rows
            .chunks(at_once)
            .zip(loss_rows.targets.chunks(at_once))
            .enumerate()
        {
            check(observer)?;
            let x_rows = self.device.gather_rows(x, hidden, rows)?;
            let logits = self.lm_head(&self.norm(&x_rows, final_norm)?)?;
            let (sum, d_logits) = match &loss_rows.teacher {
                None => self.device.cross_entropy(logits, targets, larger)?,
                Some(teacher) => {
                    let first = count(index * at_once)?;
                    let own: Vec<u32> = (first..first + count(rows.len())?).collect();
                    let teacher = self.lm_head(&self.device.gather_rows(teacher, hidden, &own)?)?;
                    self.device
                        .kl_divergence(&teacher, logits, rows.len(), larger)?
                }
            };
            loss += sum * scale;
            if let Some(d_x) = &mut d_x {
                let lm_head = self.weights.lm_head();
                let d_normed = self
                    .device
                    .matmul_backward(&d_logits, lm_head, None, Keep::Full)?;
                let eps = self.config.rms_norm_eps;
                let d_rows = self
                    .device
                    .rms_norm_backward(&x_rows, final_norm, &d_normed, eps, None)?;
                self.device.scatter_rows(&d_rows, hidden, rows, d_x)?;
            }
        }
        Ok((loss, d_x))
    }
}

#[cfg(test)]
mod tests {
    use crate::random_model::model;
    use crate::{KvPrecision, Sample};

    #[test]
    fn an_eight_bit_cache_is_compared_with_the_full_one() {
        let lm = model();
        let sample = Sample::new((0..60).map(|i| (i * 29 + 3) % 101).collect(), 30);
        let exact = lm.kl_to_dense(&sample, None, &()).unwrap();
        lm.set_kv_precision(KvPrecision::Int8);
        let rounded = lm.kl_to_dense(&sample, None, &()).unwrap();
        assert!(exact.abs() < 1e-9 && rounded > 1e-9, "{exact} {rounded}");
    }
}
