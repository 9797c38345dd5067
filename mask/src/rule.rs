//! The rule of a KV head, and the only place where a span is computed.

use crate::{HeadMask, MaskError, Result};

/// Sink tokens of a plan that does not say otherwise.
pub const DEFAULT_SINK: u32 = 64;
/// Block size in tokens of a plan that does not say otherwise.
pub const DEFAULT_BLOCK: u32 = 64;

/// The grid that all rules of a plan share: how many first keys every head keeps, and the step of spans.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MaskGrid {
    sink: u32,
    block: u32,
}

impl MaskGrid {
    /// A grid of `sink` first tokens (0 or a multiple of `block`) and spans in steps of `block` tokens.
    pub fn new(sink: u32, block: u32) -> Result<Self> {
        if block == 0 {
            return Err(MaskError::ZeroBlock);
        }
        if !sink.is_multiple_of(block) {
            return Err(MaskError::UnalignedSink { sink, block });
        }
        Ok(Self { sink, block })
    }

    /// First keys that every query sees, in tokens.
    pub const fn sink(self) -> u32 {
        self.sink
    }

    /// Step of spans in tokens.
    pub const fn block(self) -> u32 {
        self.block
    }

    /// The smallest span that a rule can give at a context long enough: the sink and one block.
    pub const fn min_span(self) -> u32 {
        self.sink.saturating_add(self.block)
    }

    /// `tokens` rounded up to a multiple of the block size, saturating at the largest such `u32`.
    pub fn ceil_to_block(self, tokens: f64) -> u32 {
        let block = f64::from(self.block);
        let largest = u32::MAX - u32::MAX % self.block;
        let rounded = (tokens / block).ceil() * block;
        if rounded >= f64::from(largest) {
            largest
        } else {
            #[expect(
                clippy::cast_possible_truncation,
                reason = "clamped to 0..=largest, which is a u32"
            )]
            #[expect(clippy::cast_sign_loss, reason = "clamped at zero")]
            let tokens = rounded.max(0.0) as u32;
            tokens
        }
    }
}

impl Default for MaskGrid {
    fn default() -> Self {
        Self {
            sink: DEFAULT_SINK,
            block: DEFAULT_BLOCK,
        }
    }
}

/// How wide a KV head sees, as a function of the declared context length N.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum HeadRule {
    /// `S(N) = min(max(ceil_to_block(alpha + beta*N), sink + block), ceil_to_block(N))`.
    Elastic {
        /// Tokens at N = 0; may be negative.
        alpha: f64,
        /// Tokens per token of context, 0 to 1.
        beta: f64,
    },
    /// An explicit span, the same at every N and taken exactly as written: for tests and imports.
    Exact {
        /// Span in tokens, sink included, at least `sink + 1`.
        span: u32,
    },
}

impl HeadRule {
    /// The rule under which a head sees everything at every length.
    pub const DENSE: Self = Self::Elastic {
        alpha: 0.0,
        beta: 1.0,
    };

    /// Whether the numbers define a span on `grid`.
    pub fn check(self, grid: MaskGrid) -> Result<()> {
        match self {
            Self::Elastic { alpha, beta } => {
                if !alpha.is_finite() || !(0.0..=1.0).contains(&beta) {
                    return Err(MaskError::BadRule { alpha, beta });
                }
            }
            Self::Exact { span } => {
                if span <= grid.sink() {
                    return Err(MaskError::SpanTooShort {
                        span,
                        sink: grid.sink(),
                    });
                }
            }
        }
        Ok(())
    }

    /// The span S(N) in tokens, sink included. Computed in f64, here and nowhere else.
    pub fn span(self, context: u32, grid: MaskGrid) -> u32 {
        match self {
            Self::Elastic { alpha, beta } => grid
                .ceil_to_block(alpha + beta * f64::from(context))
                .max(grid.min_span())
                .min(grid.ceil_to_block(f64::from(context))),
            Self::Exact { span } => span,
        }
    }

    /// The mask at a declared context length.
    pub fn mask(self, context: u32, grid: MaskGrid) -> HeadMask {
        HeadMask::from_span(self.span(context, grid), grid.sink())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn span_follows_the_formula() {
        let grid = MaskGrid::default();
        let half = HeadRule::Elastic {
            alpha: 0.0,
            beta: 0.5,
        };
        assert_eq!(half.span(8192, grid), 4096);
        assert_eq!(half.span(8193, grid), 4160, "rounded up to a block");
        assert_eq!(half.span(100, grid), 128, "never below sink + block");
        assert_eq!(
            half.span(60, grid),
            64,
            "never above the length, rounded up"
        );
        let negative = HeadRule::Elastic {
            alpha: -2048.0,
            beta: 1.0,
        };
        assert_eq!(negative.span(2048, grid), 128);
        assert_eq!(negative.span(4096, grid), 2048);
        let wide = HeadRule::Elastic {
            alpha: 8192.0,
            beta: 1.0,
        };
        assert_eq!(wide.span(1000, grid), 1024);
        assert_eq!(
            HeadRule::Exact { span: 129 }.span(64, grid),
            129,
            "taken as written"
        );
        assert_eq!(
            HeadRule::Elastic {
                alpha: 1e300,
                beta: 0.0
            }
            .span(u32::MAX, grid),
            u32::MAX - 63
        );
    }

    #[test]
    fn bad_rules_are_named() {
        let grid = MaskGrid::default();
        assert_eq!(
            MaskGrid::new(32, 64),
            Err(MaskError::UnalignedSink {
                sink: 32,
                block: 64
            })
        );
        assert_eq!(MaskGrid::new(0, 0), Err(MaskError::ZeroBlock));
        assert!(MaskGrid::new(0, 16).is_ok());
        assert!(
            HeadRule::Elastic {
                alpha: f64::NAN,
                beta: 0.5
            }
            .check(grid)
            .is_err()
        );
        assert!(
            HeadRule::Elastic {
                alpha: 0.0,
                beta: 1.01
            }
            .check(grid)
            .is_err()
        );
        assert!(
            HeadRule::Elastic {
                alpha: 0.0,
                beta: -0.01
            }
            .check(grid)
            .is_err()
        );
        assert_eq!(
            HeadRule::Exact { span: 64 }.check(grid),
            Err(MaskError::SpanTooShort { span: 64, sink: 64 })
        );
        assert!(HeadRule::Exact { span: 65 }.check(grid).is_ok());
    }
}
