//! The plan file: golden bytes, and every kind of damage.

use moa_format::{FormatError, Plan, Provenance};
use moa_mask::HeadRule;

use crate::fixture::plan;

fn small() -> Plan {
    Plan {
        name: "t".into(),
        sink: 4,
        block: 2,
        rules: vec![
            vec![HeadRule::Elastic {
                alpha: -1.0,
                beta: 0.5,
            }],
            vec![HeadRule::Exact { span: 9 }],
        ],
        provenance: Provenance::default(),
    }
}

/// Written by hand from docs/plan-format.md; the checksum by another program.
#[rustfmt::skip]
const GOLDEN: &[u8] = &[
    b'M', b'O', b'A', b'-', b'P', b'L', b'A', b'N',
    1, 0, 0, 0,                                     // version
    71, 0, 0, 0,                                    // payload bytes
    0xCB, 0xFC, 0x8F, 0x2F,                         // CRC-32
    1, 0, 0, 0, 0, 0, 0, 0, b't',                   // name
    4, 0, 0, 0,                                     // sink
    2, 0, 0, 0,                                     // block
    2, 0, 0, 0,                                     // layers
    1, 0, 0, 0,                                     // kv_heads
    2, 0, 0, 0, 0, 0, 0, 0,                         // rules
    0, 0, 0, 0,                                     // elastic
    0, 0, 0, 0, 0, 0, 0xF0, 0xBF,                   // alpha -1
    0, 0, 0, 0, 0, 0, 0xE0, 0x3F,                   // beta 0.5
    1, 0, 0, 0,                                     // exact
    9, 0, 0, 0,                                     // span
    2, 0, 0, 0, 0, 0, 0, 0, b'{', b'}',             // provenance
];

const HEADER: usize = 20;

/// A file with `payload` and a checksum that holds.
fn sealed(payload: &[u8]) -> Vec<u8> {
    let mut bytes = GOLDEN[..12].to_vec();
    bytes.extend(u32::try_from(payload.len()).unwrap().to_le_bytes());
    let mut crc = crc32fast::Hasher::new();
    crc.update(&bytes);
    crc.update(payload);
    bytes.extend(crc.finalize().to_le_bytes());
    bytes.extend(payload);
    bytes
}

#[test]
fn bytes_are_as_documented() {
    assert_eq!(small().to_bin().unwrap(), GOLDEN);
    assert_eq!(Plan::from_bin(GOLDEN).unwrap(), small());
    assert_eq!(sealed(&GOLDEN[HEADER..]), GOLDEN, "the test's own sealing");
}

#[test]
fn round_trip_keeps_provenance() {
    let plan = plan();
    assert_eq!(Plan::from_bin(&plan.to_bin().unwrap()).unwrap(), plan);
}

#[test]
fn every_flipped_bit_is_refused() {
    for bytes in [GOLDEN.to_vec(), plan().to_bin().unwrap()] {
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut damaged = bytes.clone();
                damaged[at] ^= 1 << bit;
                assert!(Plan::from_bin(&damaged).is_err(), "byte {at} bit {bit}");
            }
        }
    }
}

#[test]
fn every_other_length_is_refused() {
    for length in 0..GOLDEN.len() {
        assert!(Plan::from_bin(&GOLDEN[..length]).is_err(), "{length}");
    }
    let mut longer = GOLDEN.to_vec();
    longer.push(0);
    assert!(matches!(
        Plan::from_bin(&longer),
        Err(FormatError::WrongSize { .. })
    ));
    // Trailing bytes that the checksum covers are refused as well.
    let mut payload = GOLDEN[HEADER..].to_vec();
    payload.push(0);
    assert!(Plan::from_bin(&sealed(&payload)).is_err());
    assert!(Plan::from_bin(&sealed(&payload[..payload.len() - 2])).is_err());
    assert!(Plan::from_bin(&sealed(&[])).is_err());
    assert!(Plan::from_bin(&sealed(&vec![0; 5 << 20])).is_err());
}

/// Behind a checksum that holds, any byte may be anything: no panic, no huge allocation, and what is read is a
/// plan that passes its own check.
#[test]
fn lies_behind_a_valid_checksum_do_not_panic() {
    let payload = &GOLDEN[HEADER..];
    for at in 0..payload.len() {
        for value in 0..=255 {
            let mut lying = payload.to_vec();
            lying[at] = value;
            if let Ok(plan) = Plan::from_bin(&sealed(&lying)) {
                plan.check().unwrap();
            }
        }
    }
    let counts = [0, 9 + 16];
    for at in counts {
        for count in [u64::MAX, 1 << 62, 1 << 40, 1 << 20, 3, 0] {
            let mut lying = payload.to_vec();
            lying[at..at + 8].copy_from_slice(&count.to_le_bytes());
            assert!(
                Plan::from_bin(&sealed(&lying)).is_err(),
                "count {count} at {at}"
            );
        }
    }
    for (at, name) in [(17, "layers"), (21, "kv_heads")] {
        for count in [0u32, 3, 1 << 20, u32::MAX] {
            let mut lying = payload.to_vec();
            lying[at..at + 4].copy_from_slice(&count.to_le_bytes());
            let error = Plan::from_bin(&sealed(&lying)).unwrap_err().to_string();
            assert!(error.contains("number of"), "{name} {count}: {error}");
        }
    }
}

#[test]
fn newer_versions_and_other_files_are_told_apart() {
    let mut newer = GOLDEN.to_vec();
    newer[8] = 2;
    let error = Plan::from_bin(&newer).unwrap_err();
    assert!(matches!(error, FormatError::NewerVersion { got: 2, .. }));
    assert!(error.to_string().contains("update"), "{error}");
    for other in [&b"GGUF"[..], b"", b"MOA-PLA", b"{\"version\": 1}"] {
        assert!(matches!(
            Plan::from_bin(other),
            Err(FormatError::NotThis { .. })
        ));
    }
}
