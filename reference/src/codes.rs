//! Twin of products with codes: whole numbers of steps, which meet the weights less what all of a group have in common, and
//! sums, which meet that.

/// Columns that share a step and a sum.
pub const GROUP: usize = moa_mask::abi::CODE_GROUP as usize;

/// One token as codes.
#[derive(Debug, Clone, PartialEq)]
pub struct Codes {
    /// `[cols]`.
    pub codes: Vec<i8>,
    /// `[cols / 8]`: what one of them stands for.
    pub steps: Vec<f32>,
    /// `[cols / 8]`: sums of the values; whatever they are, they are taken as they are.
    pub sums: Vec<f32>,
    /// `[cols / 8]`: sums of squares before a norm's weights.
    pub squares: Vec<f32>,
}

impl Codes {
    /// `[cols]`: what the codes stand for.
    pub fn values(&self) -> Vec<f64> {
        let value =
            |(column, code): (usize, &i8)| f64::from(*code) * f64::from(self.steps[column / GROUP]);
        self.codes.iter().enumerate().map(value).collect()
    }

    /// `weights` and `offsets` `[rows, cols]` -> `[rows]`.
    pub fn product(&self, weights: &[f64], offsets: &[f64]) -> Vec<f64> {
        let (values, cols) = (self.values(), self.codes.len());
        let mut y = vec![0.0; weights.len() / cols];
        for row in 0..y.len() {
            for col in 0..cols {
                let at = row * cols + col;
                y[row] += values[col] * (weights[at] - offsets[at]);
            }
            for (group, sum) in self.sums.iter().enumerate() {
                y[row] += f64::from(*sum) * offsets[row * cols + GROUP * group];
            }
        }
        y
    }

    /// The root of the mean square, with `eps` under it.
    pub fn root(&self, eps: f64) -> f64 {
        let sum: f64 = self.squares.iter().map(|square| f64::from(*square)).sum();
        (sum / self.codes.len() as f64 + eps).sqrt()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_by_hand() {
        let codes = Codes {
            codes: vec![1, -2, 0, 0, 0, 0, 0, 4, 127, 0, 0, 0, 0, 0, 0, 0],
            steps: vec![0.5, 2.0],
            sums: vec![10.0, -1.0],
            squares: vec![15.0, 33.0],
        };
        // The second half of the row meets no offset.
        let mut weights = vec![3.0; 16];
        let mut offsets = vec![1.0; 8];
        offsets.extend([0.0; 8]);
        weights[1] = -4.0;
        let first = 0.5 * 2.0 - 1.0 * -5.0 + 2.0 * 2.0 + 10.0;
        assert_eq!(codes.product(&weights, &offsets), [first + 254.0 * 3.0]);
        assert_eq!(codes.root(1.0), 2.0);
    }
}
