//! Which kernels there are, and how their sources are put together.

use moa_mask::abi;

/// What a kernel is specialized for: rendered as `#define`s before its source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct KernelConfig {
    /// Channels of a head: 64, 96 or 128; smaller ones are padded with zeros.
    pub head_dim: u32,
    /// Query heads that share one KV head.
    pub gqa_group: u32,
}

/// A kernel by its stem.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kernel {
    /// Root mean square normalization of rows.
    RmsNorm,
}

impl Kernel {
    /// Every kernel.
    pub const ALL: &[Self] = &[Self::RmsNorm];

    /// The stem that names the kernel in every language.
    pub const fn stem(self) -> &'static str {
        match self {
            Self::RmsNorm => "rms_norm",
        }
    }

    /// Prelude, configuration and source: what NVRTC compiles.
    pub fn assemble(self, config: KernelConfig) -> String {
        let body = match self {
            Self::RmsNorm => include_str!("../cu/rms_norm.cu"),
        };
        format!(
            "{}#define HEAD_DIM {}u\n#define GQA_GROUP {}u\n{body}",
            abi::cuda_prelude(),
            config.head_dim,
            config.gqa_group
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_begin_with_the_shared_prelude() {
        for &kernel in Kernel::ALL {
            let text = kernel.assemble(KernelConfig {
                head_dim: 64,
                gqa_group: 3,
            });
            assert!(text.starts_with("// Generated from mask/src/abi.rs"));
            assert!(text.contains("#define HEAD_DIM 64u"));
            assert!(
                text.contains(&format!("void {}(", kernel.stem())),
                "the entry point has the stem's name"
            );
        }
    }
}
