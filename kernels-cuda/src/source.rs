//! Which kernels there are, and how their sources are put together.

use moa_mask::{KvFormat, abi};

use crate::launch;

/// The 16-bit type of a kernel's inputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ElementType {
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
}

/// What a kernel is specialized for: rendered as `#define`s before its source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct KernelConfig {
    /// Channels of a head: a multiple of 16, at most 128. Kernels that know no heads ignore it.
    pub head_dim: u32,
    /// Type of the inputs.
    pub element: ElementType,
}

impl KernelConfig {
    /// The configuration of kernels that know no heads.
    pub const fn of_rows(element: ElementType) -> Self {
        Self {
            head_dim: 64,
            element,
        }
    }
}

/// A kernel by its stem.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kernel {
    /// Joint influence curves of a layer.
    Influence,
    /// Attention of a run of queries under spans.
    AttentionPrefill,
    /// Gradients of masked attention.
    AttentionBackward,
    /// Attention of one query a request over rings.
    AttentionDecode,
    /// What hiding single entries would cost, and what it is computed from.
    InfluenceEntries,
    /// Root mean square norm and its backward.
    RmsNorm,
    /// Rotary positions.
    Rope,
    /// The MLP's activation and its backward.
    Swiglu,
    /// Rows by number, and casts.
    Embedding,
    /// Losses of rows of logits, with gradients.
    CrossEntropy,
    /// Keys and values into their slots and out of them.
    KvCommit,
    /// Reads memory: the ceiling beside which others are timed.
    ReadBandwidth,
    /// [`Self::AttentionDecode`] over caches of bytes.
    AttentionDecodeInt8,
    /// Biases, RoPE and the way into caches.
    QkvRows,
    /// [`Self::QkvRows`] into caches of bytes.
    QkvRowsInt8,
    /// Greedy tokens, and likelihoods.
    Argmax,
}

/// Warpgroups of 64 keys that share a stream of queries, and how many tiles of it are in flight.
pub(crate) const KV_CONSUMERS: u32 = 2;
pub(crate) const KV_STAGES: u32 = 3;

/// Strips of 16 keys that a warp of decode attention has on their way.
pub(crate) const DECODE_STAGES: u32 = 3;

/// Blocks of decode attention that run at a time on a multiprocessor, by their shared memory and registers. Bytes take more instructions, and
/// so more warps to hide them.
pub(crate) const fn decode_blocks(format: KvFormat) -> u32 {
    match format {
        KvFormat::Sixteen => 2,
        KvFormat::Int8 => 4,
    }
}

impl Kernel {
    /// Every kernel.
    pub const ALL: &[Self] = &[
        Self::Influence,
        Self::AttentionPrefill,
        Self::AttentionBackward,
        Self::AttentionDecode,
        Self::InfluenceEntries,
        Self::RmsNorm,
        Self::Rope,
        Self::Swiglu,
        Self::Embedding,
        Self::CrossEntropy,
        Self::KvCommit,
        Self::ReadBandwidth,
        Self::AttentionDecodeInt8,
        Self::QkvRows,
        Self::QkvRowsInt8,
        Self::Argmax,
    ];

    pub(crate) const fn attention_decode(format: KvFormat) -> Self {
        match format {
            KvFormat::Sixteen => Self::AttentionDecode,
            KvFormat::Int8 => Self::AttentionDecodeInt8,
        }
    }

    pub(crate) const fn qkv_rows(format: KvFormat) -> Self {
        match format {
            KvFormat::Sixteen => Self::QkvRows,
            KvFormat::Int8 => Self::QkvRowsInt8,
        }
    }

    /// How the caches are kept that the kernel knows.
    const fn format(self) -> KvFormat {
        match self {
            Self::AttentionDecodeInt8 | Self::QkvRowsInt8 => KvFormat::Int8,
            _ => KvFormat::Sixteen,
        }
    }

    /// The stem that names the kernel in every language.
    pub const fn stem(self) -> &'static str {
        match self {
            Self::Influence => "influence",
            Self::AttentionPrefill => "attention_prefill",
            Self::AttentionBackward => "attention_backward",
            Self::AttentionDecode | Self::AttentionDecodeInt8 => "attention_decode",
            Self::QkvRows | Self::QkvRowsInt8 => "qkv_rows",
            Self::Argmax => "argmax",
            Self::InfluenceEntries => "influence_entries",
            Self::RmsNorm => "rms_norm",
            Self::Rope => "rope",
            Self::Swiglu => "swiglu",
            Self::Embedding => "embedding",
            Self::CrossEntropy => "cross_entropy",
            Self::KvCommit => "kv_commit",
            Self::ReadBandwidth => "read_bandwidth",
        }
    }

    /// Whether the kernel uses Hopper's instructions, and so runs on compute capability 9.0 alone.
    pub const fn needs_hopper(self) -> bool {
        matches!(
            self,
            Self::Influence
                | Self::InfluenceEntries
                | Self::AttentionPrefill
                | Self::AttentionBackward
        )
    }

    /// Prelude, configuration, shared pieces and source: what NVRTC compiles.
    pub fn assemble(self, config: KernelConfig) -> String {
        let hopper = include_str!("../cu/shared/hopper.cuh");
        let visible = include_str!("../cu/shared/visible.cuh");
        let rows = include_str!("../cu/shared/rows.cuh");
        let slots = include_str!("../cu/shared/slots.cuh");
        let partials = include_str!("../cu/shared/partials.cuh");
        let pieces: &[&str] = match self {
            Self::AttentionDecode | Self::AttentionDecodeInt8 => {
                &[include_str!("../cu/attention_decode.cu")]
            }
            Self::QkvRows | Self::QkvRowsInt8 => &[rows, slots, include_str!("../cu/qkv_rows.cu")],
            Self::Argmax => &[rows, include_str!("../cu/argmax.cu")],
            Self::ReadBandwidth => &[include_str!("../cu/bench/read_bandwidth.cu")],
            Self::RmsNorm => &[rows, include_str!("../cu/rms_norm.cu")],
            Self::Rope => &[rows, include_str!("../cu/rope.cu")],
            Self::Swiglu => &[rows, include_str!("../cu/swiglu.cu")],
            Self::Embedding => &[rows, include_str!("../cu/embedding.cu")],
            Self::CrossEntropy => &[rows, include_str!("../cu/cross_entropy.cu")],
            Self::KvCommit => &[rows, slots, include_str!("../cu/kv_commit.cu")],
            Self::Influence => &[hopper, partials, include_str!("../cu/influence.cu")],
            Self::InfluenceEntries => &[
                hopper,
                visible,
                partials,
                include_str!("../cu/influence_entries.cu"),
            ],
            Self::AttentionPrefill => {
                &[hopper, visible, include_str!("../cu/attention_prefill.cu")]
            }
            Self::AttentionBackward => {
                &[hopper, visible, include_str!("../cu/attention_backward.cu")]
            }
        };
        let defines = [
            ("HEAD_DIM", config.head_dim),
            (
                "ELEMENT_BF16",
                u32::from(config.element == ElementType::Bf16),
            ),
            ("CONSUMERS", self.consumers()),
            ("STAGES", stages(config.head_dim)),
            ("KV_CONSUMERS", KV_CONSUMERS),
            ("KV_STAGES", KV_STAGES),
            ("DECODE_STAGES", DECODE_STAGES),
            ("DECODE_BLOCKS", decode_blocks(self.format())),
            ("KV_INT8", u32::from(self.format() == KvFormat::Int8)),
        ];
        let mut text = abi::cuda_prelude();
        for (name, value) in defines {
            text += &format!("#define {name} {value}u\n");
        }
        text + &pieces.concat()
    }

    /// Machine code for `arch`, such as `sm_90a`: what opening a device does on demand, without a device.
    ///
    /// # Errors
    /// [`CudaError::NoCompiler`](crate::CudaError::NoCompiler), [`CudaError::Compile`](crate::CudaError::Compile).
    pub fn compile(self, config: KernelConfig, arch: &str) -> crate::Result<Vec<u8>> {
        let options = Self::options(arch);
        launch::compile(self.stem(), &self.assemble(config), arch, &options)
    }

    /// Warpgroups that share a stream of tiles.
    pub(crate) const fn consumers(self) -> u32 {
        match self {
            Self::Influence | Self::InfluenceEntries => 4,
            _ => 3,
        }
    }

    /// Options for NVRTC. No fast-math: approximations stand in the sources where they are meant.
    pub(crate) fn options(arch: &str) -> Vec<String> {
        vec![
            format!("--gpu-architecture={arch}"),
            "--std=c++17".into(),
            "--fmad=true".into(),
        ]
    }
}

/// Bytes of one 64-row operand in shared memory: whole tiles of 64 channels.
pub(crate) const fn operand_bytes(head_dim: u32) -> u32 {
    head_dim.div_ceil(64) * 8192
}

/// K and V tiles in flight: what fits beside the query rows in the 227 KiB of a Hopper block.
pub(crate) const fn stages(head_dim: u32) -> u32 {
    if head_dim > 64 { 3 } else { 6 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_begin_with_the_shared_prelude() {
        for &kernel in Kernel::ALL {
            let text = kernel.assemble(KernelConfig {
                head_dim: 64,
                element: ElementType::Bf16,
            });
            assert!(text.starts_with("// Generated from mask/src/abi.rs"));
            assert!(text.contains("#define HEAD_DIM 64u"));
            assert!(text.contains("extern \"C\" __global__ void"));
        }
    }

    #[test]
    fn tiles_fit_in_shared_memory() {
        for head_dim in [16, 32, 64, 96, 128] {
            let operands = 2 * (Kernel::Influence.consumers() + stages(head_dim));
            assert!(operands * operand_bytes(head_dim) + 2048 <= 227 * 1024);
        }
    }
}
