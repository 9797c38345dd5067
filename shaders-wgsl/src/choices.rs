//! What a kernel's variants differ by: how weights and vectors are stored, what they are multiplied with, how work is
//! shared.

use crate::WIDE_WORKGROUP;

/// How a weight matrix is stored; the layouts are those of `moa-format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WeightType {
    /// Nibbles in groups of 32, f16 scale and minimum.
    Q4,
    /// Signed bytes in groups of 32, f16 scale.
    Q8,
    /// Half precision.
    F16,
    /// Single precision.
    F32,
}

impl WeightType {
    /// Every type.
    pub const ALL: [Self; 4] = [Self::Q4, Self::Q8, Self::F16, Self::F32];

    /// The name in sources and labels.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Q4 => "q4",
            Self::Q8 => "q8",
            Self::F16 => "f16",
            Self::F32 => "f32",
        }
    }

    /// Whether a piece has scales apart from its values.
    pub const fn has_scales(self) -> bool {
        matches!(self, Self::Q4 | Self::Q8)
    }

    /// What the number of columns must be a multiple of.
    pub const fn column_step(self) -> u32 {
        if self.has_scales() {
            moa_mask::abi::QUANT_GROUP
        } else {
            4
        }
    }
}

/// How a vector (norm weights, bias) is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum VectorType {
    /// Half precision.
    F16,
    /// Single precision.
    F32,
}

impl VectorType {
    /// Every type.
    pub const ALL: [Self; 2] = [Self::F16, Self::F32];

    /// The name in sources and labels.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::F32 => "f32",
        }
    }
}

/// Where `rope` puts keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KvTarget {
    /// The chunk scratch, in prefill.
    Chunk,
    /// The ring, in decode.
    Ring,
}

/// How many of a workgroup's threads share how many rows of weights in the fused kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lanes {
    /// 16: for matrices with rows enough for every core.
    L16,
    /// 32: for rows of 1,024 columns at most, or longer ones of codes.
    L32,
    /// 64: for few long rows.
    L64,
    /// 64, for two rows: more workgroups of fewer rows. [`Kernel::Project`](crate::Kernel::Project) alone has it.
    L64Two,
    /// 32 for two rows of inputs that come as codes.
    L32Two,
    /// 32 for one row of such inputs.
    L32One,
    /// 64 for one row of such inputs.
    L64One,
    /// The same in workgroups of 512, which have a whole group of outputs: more than WebGPU's default.
    L64Wide,
}

impl Lanes {
    /// Every choice for four rows.
    pub const ALL: [Self; 3] = [Self::L16, Self::L32, Self::L64];

    /// Threads of a workgroup.
    pub const fn threads(self) -> u32 {
        match self {
            Self::L64Wide => WIDE_WORKGROUP,
            _ => 256,
        }
    }

    /// Threads that share rows.
    pub const fn lanes(self) -> u32 {
        match self {
            Self::L16 => 16,
            Self::L32 | Self::L32Two | Self::L32One => 32,
            Self::L64 | Self::L64Two | Self::L64One | Self::L64Wide => 64,
        }
    }

    /// Rows that they share.
    pub const fn set_rows(self) -> u32 {
        match self {
            Self::L32One | Self::L64One | Self::L64Wide => 1,
            Self::L64Two | Self::L32Two => 2,
            _ => 4,
        }
    }

    /// Rows of weights that a workgroup reads.
    pub const fn rows(self) -> u32 {
        self.set_rows() * self.threads() / self.lanes()
    }

    /// The name in labels.
    pub const fn name(self) -> &'static str {
        match self {
            Self::L16 => "l16",
            Self::L32 => "l32",
            Self::L64 => "l64",
            Self::L64Two => "l64_two",
            Self::L32Two => "l32_two",
            Self::L32One => "l32_one",
            Self::L64One => "l64_one",
            Self::L64Wide => "l64_wide",
        }
    }
}

/// What the fused kernels multiply rows of weights with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Inputs {
    /// Values in f32, as they are.
    Plain,
    /// Values in f32, with a norm in the load whose weights are stored so.
    Norm(VectorType),
    /// Codes, as the kernel before leaves them: bytes with a scale for every
    /// [`CODE_GROUP`](moa_mask::abi::CODE_GROUP).
    Codes,
    /// Codes that have met a norm's weights; its root is found here.
    NormedCodes,
}

impl Inputs {
    /// Whether they are codes.
    pub const fn are_codes(self) -> bool {
        matches!(self, Self::Codes | Self::NormedCodes)
    }

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Norm(VectorType::F16) => ".norm_f16",
            Self::Norm(VectorType::F32) => ".norm_f32",
            Self::Codes => ".of_codes",
            Self::NormedCodes => ".of_normed_codes",
        }
    }
}

/// How a workgroup of [`Kernel::Matmul`](crate::Kernel::Matmul) shares its 64 rows of 64 tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MatmulThreads {
    /// Among 256 threads.
    Wide,
    /// Among 256 threads, and 32 tokens only: for matrices of few rows.
    Short,
    /// Among 64 threads: quicker on software adapters.
    Narrow,
}

impl MatmulThreads {
    /// Every choice.
    pub const ALL: [Self; 3] = [Self::Wide, Self::Short, Self::Narrow];

    /// Tokens of a workgroup.
    pub const fn tokens(self) -> u32 {
        match self {
            Self::Wide | Self::Narrow => 64,
            Self::Short => 32,
        }
    }
}
