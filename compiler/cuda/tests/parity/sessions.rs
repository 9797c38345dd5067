//! Sessions: chunks, turns, single tokens and rewinds see the keys that one run sees.

use half::f16;
use moa_lm::Device;

use crate::fixture::{cuda, exact_masks, ids, load, on_cpu, part, random};

#[test]
#[cfg_attr(skip_cuda, ignore = "needs a CUDA device: MOA_TEST_CUDA=yes")]
fn a_session_is_the_cpus() {
    let source = random(2, 6, 2, 64);
    let (cpu, gpu) = (on_cpu(&source), load(cuda::<f16>(), &source));
    let text = ids(700, 601);
    let masks = exact_masks(&[vec![100, 300], vec![65, 700]], 64, 760);
    let wider = exact_masks(&[vec![101, 300], vec![65, 700]], 64, 760);
    for masks in [None, Some(&masks)] {
        let mut expected = cpu.session(masks, 760).unwrap();
        let mut actual = gpu.session(masks, 760).unwrap();
        // Rings wrap around: the windows are shorter than the text.
        for run in [0..300, 300..301, 301..640, 640..700] {
            let expected = expected.prefill(&text[run.clone()]).unwrap();
            let actual = actual.prefill(&text[run.clone()]).unwrap();
            let worst = part(&actual, &expected);
            println!("session {run:?}: {worst:.2e} of the largest logit");
            assert!(worst < 1e-2, "{run:?}: {worst}");
        }
        for id in [5, 77, 300, 2] {
            let worst = part(&actual.decode(id).unwrap(), &expected.decode(id).unwrap());
            assert!(worst < 1e-2, "{worst}");
        }
        // Taken back, and written again: to the last bit.
        let before = actual.decode(9).unwrap();
        actual.rewind(3).unwrap();
        actual.decode(300).unwrap();
        actual.decode(2).unwrap();
        assert_eq!(actual.decode(9).unwrap(), before);
        // Half of what the CPU keeps.
        let (ours, theirs) = (actual.kv_bytes().unwrap(), expected.kv_bytes().unwrap());
        assert_eq!(2 * ours.cache, theirs.cache);
    }
    let mut other = gpu.session(Some(&wider), 760).unwrap();
    let mut same = gpu.session(Some(&masks), 760).unwrap();
    let (other, same) = (other.prefill(&text).unwrap(), same.prefill(&text).unwrap());
    assert!(part(&other, &same) > 1e-4, "a window one token wider shows");
    println!("{}", gpu.device().label());
}
