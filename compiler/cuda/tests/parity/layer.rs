//! One layer's attention and its gradients, operation by operation.

use half::{bf16, f16};
use moa_cuda::Cuda;
use moa_kernels::{Element, ElementType};
use moa_lm::{AttentionBackward, AttentionGradients, AttentionShape, Cpu, Device, Projected};
use moa_mask::{HeadMask, MaskGrid};

use crate::fixture::{cuda, part};

fn noise(len: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let bits = u16::try_from(state >> 16).unwrap();
            f32::from(bits) / 32768.0 - 1.0
        })
        .collect()
}

/// Gradients of q, k and v on a device, as f32.
fn gradients<D: Device>(
    device: &D,
    shape: AttentionShape,
    masks: &[HeadMask],
    len: usize,
) -> [Vec<f32>; 3] {
    let weight = |len, seed| device.upload_weight(noise(len, seed)).unwrap();
    let (q, k) = (
        weight(len * shape.q_dim(), 1),
        weight(len * shape.kv_dim(), 2),
    );
    let (v, d_o) = (
        weight(len * shape.kv_dim(), 3),
        weight(len * shape.q_dim(), 4),
    );
    let projected = || Projected {
        q: &q,
        k: &k,
        v: &v,
        start: 0,
    };
    let attended = device.attention(shape, &projected(), masks, None).unwrap();
    let AttentionGradients { d_q, d_k, d_v, .. } = device
        .attention_backward(&AttentionBackward {
            shape,
            projected: projected(),
            masks,
            lse: &attended.lse,
            d_o: &d_o,
            grid: MaskGrid::default(),
            per_entry: false,
            blocks: None,
        })
        .unwrap();
    [&d_q, &d_k, &d_v].map(|values| device.download(values).unwrap())
}

fn check<T: Element + std::fmt::Debug + Send + Sync>() {
    let device = cuda::<T>();
    let allowed = if T::TYPE == ElementType::F16 {
        3e-3
    } else {
        2e-2
    };
    let shape = AttentionShape {
        heads: 6,
        kv_heads: 2,
        head_dim: 64,
    };
    // A window of 90 is no span of the curves: its D comes from a pass of its own. That of 128 is one.
    for window in [90, 128] {
        check_under::<T>(&device, shape, window, allowed);
    }
}

fn check_under<T: Element + std::fmt::Debug + Send + Sync>(
    device: &Cuda<T>,
    shape: AttentionShape,
    window: u32,
    allowed: f64,
) {
    let masks = [HeadMask::DENSE, HeadMask { sink: 64, window }];
    let expected = gradients(&Cpu, shape, &masks, 300);
    let actual = gradients(device, shape, &masks, 300);
    let narrower = [
        HeadMask::DENSE,
        HeadMask {
            sink: 64,
            window: window - 30,
        },
    ];
    let wrong = gradients(&Cpu, shape, &narrower, 300);
    for (index, name) in ["d_q", "d_k", "d_v"].into_iter().enumerate() {
        let worst = part(&actual[index], &expected[index]);
        println!("{name} {:?}: {worst:.2e} of the largest", T::TYPE);
        assert!(worst <= allowed, "{name}: {worst}");
        assert!(part(&actual[index], &wrong[index]) > allowed, "{name}");
    }
}

#[test]
#[cfg_attr(skip_cuda, ignore = "needs a CUDA device: MOA_TEST_CUDA=yes")]
fn gradients_are_the_cpus() {
    check::<f16>();
    check::<bf16>();
}
