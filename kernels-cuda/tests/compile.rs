//! Every kernel through NVRTC, for the device that they are written for; needs no device. Shown as ignored without `MOA_TEST_NVRTC=yes`.

use moa_kernels::{ElementType, Kernel, KernelConfig};

#[test]
#[cfg_attr(skip_nvrtc, ignore = "needs NVRTC: MOA_TEST_NVRTC=yes")]
fn every_kernel_compiles() {
    for &kernel in Kernel::ALL {
        let head_dims: &[u32] = match kernel {
            Kernel::AttentionDecode
            | Kernel::AttentionDecodeInt8
            | Kernel::QkvRows
            | Kernel::QkvRowsInt8 => &[64, 128],
            Kernel::Influence
            | Kernel::InfluenceEntries
            | Kernel::AttentionPrefill
            | Kernel::AttentionBackward => &[16, 64, 96, 128],
            _ => &[64],
        };
        for element in [ElementType::F16, ElementType::Bf16] {
            for &head_dim in head_dims {
                let code = kernel.compile(KernelConfig { head_dim, element }, "sm_90a");
                let code = code.unwrap_or_else(|error| panic!("{error}"));
                assert!(code.starts_with(b"\x7FELF"), "{kernel:?}: not machine code");
            }
        }
    }
}

#[test]
#[cfg_attr(skip_nvrtc, ignore = "needs NVRTC: MOA_TEST_NVRTC=yes")]
fn a_refused_architecture_says_so() {
    let config = KernelConfig::of_rows(ElementType::Bf16);
    let refused = Kernel::RmsNorm.compile(config, "sm_1");
    assert!(refused.is_err_and(|error| error.to_string().contains("rms_norm")));
}
