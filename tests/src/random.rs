//! Seeded numbers, the same on every machine: not uniform noise alone, but spiked, as activations are.

/// The `SplitMix64` generator.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// A generator.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d)
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    /// An integer below `end`.
    #[expect(clippy::cast_possible_truncation, reason = "below a u32")]
    pub fn below(&mut self, end: u32) -> u32 {
        (self.bits() % u64::from(end)) as u32
    }

    /// A value in [-1, 1).
    #[expect(clippy::cast_possible_truncation, reason = "24 bits are exact in f32")]
    #[expect(clippy::cast_precision_loss, reason = "24 bits are exact in f32")]
    pub fn unit(&mut self) -> f32 {
        ((self.bits() >> 40) as f64 / f64::from(1u32 << 23) - 1.0) as f32
    }

    /// Values in [-scale, scale), one in sixteen of them four times as large.
    pub fn spiked(&mut self, count: usize, scale: f32) -> Vec<f32> {
        (0..count)
            .map(|_| {
                let value = self.unit() * scale;
                if self.bits().is_multiple_of(16) {
                    4.0 * value
                } else {
                    value
                }
            })
            .collect()
    }
}
