//! A plan as the bundle carries it: a header with magic, version, length and checksum, then bincode 2.
//!
//! ```text
//! 0   8 bytes  "MOA-PLAN"
//! 8   u32      version
//! 12  u32      payload bytes
//! 16  u32      CRC-32 (IEEE) of bytes 0..16 and the payload
//! 20  payload  bincode 2, little endian, fixed-size integers
//! ```
//!
//! All integers are little endian. This is the only file of the project that names bincode; what crosses the
//! border is a [`Plan`].

use bincode::{Decode, Encode, config};
use moa_mask::HeadRule;

use crate::error::{FormatError, Result, ensure};
use crate::plan::{MAX_PLAN_DIM, Plan};

/// Newest version of the plan file that this build reads, and the one it writes.
pub const PLAN_BIN_VERSION: u32 = 1;
/// Largest plan file that is read or written.
pub const MAX_PLAN_BYTES: usize = 4 << 20;

const MAGIC: &[u8; 8] = b"MOA-PLAN";
const HEADER: usize = 20;
/// What decoding may allocate: a rule takes up to twice as much memory as it takes bytes.
const DECODE_LIMIT: usize = 4 * MAX_PLAN_BYTES;

#[derive(Encode, Decode)]
struct PlanWire {
    name: String,
    sink: u32,
    block: u32,
    layers: u32,
    kv_heads: u32,
    rules: Vec<RuleWire>,
    provenance_json: String,
}

#[derive(Encode, Decode)]
enum RuleWire {
    Elastic { alpha: f64, beta: f64 },
    Exact { span: u32 },
}

fn encoding()
-> config::Configuration<config::LittleEndian, config::Fixint, config::Limit<DECODE_LIMIT>> {
    config::standard()
        .with_little_endian()
        .with_fixed_int_encoding()
        .with_limit::<DECODE_LIMIT>()
}

impl Plan {
    /// The plan file of a bundle.
    pub fn to_bin(&self) -> Result<Vec<u8>> {
        self.check()?;
        let wire = PlanWire {
            name: self.name.clone(),
            sink: self.sink,
            block: self.block,
            layers: count(self.rules.len())?,
            kv_heads: count(self.rules.first().map_or(0, Vec::len))?,
            rules: self
                .rules
                .iter()
                .flatten()
                .map(|&rule| rule.into())
                .collect(),
            provenance_json: serde_json::to_string(&self.provenance)
                .map_err(|reason| undecodable(&reason))?,
        };
        let payload =
            bincode::encode_to_vec(wire, encoding()).map_err(|reason| undecodable(&reason))?;
        ensure(
            payload.len() <= MAX_PLAN_BYTES - HEADER,
            "plan file's payload in bytes",
            payload.len(),
            format!("at most {}", MAX_PLAN_BYTES - HEADER),
        )?;
        let mut bytes = Vec::with_capacity(HEADER + payload.len());
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&PLAN_BIN_VERSION.to_le_bytes());
        bytes.extend_from_slice(&count(payload.len())?.to_le_bytes());
        bytes.extend_from_slice(&checksum(&bytes, &payload).to_le_bytes());
        bytes.extend_from_slice(&payload);
        Ok(bytes)
    }

    /// Reads what [`Plan::to_bin`] wrote. Every byte is accounted for: any change is refused.
    pub fn from_bin(bytes: &[u8]) -> Result<Self> {
        if !bytes.starts_with(MAGIC) {
            return Err(FormatError::NotThis {
                what: "plan file",
                expected: "MOA-PLAN",
            });
        }
        let Some((header, payload)) = bytes.split_at_checked(HEADER) else {
            return Err(FormatError::size(
                "plan file",
                bytes.len() as u64,
                HEADER as u64,
            ));
        };
        let (version, payload_bytes, crc) = (word(header, 8), word(header, 12), word(header, 16));
        if version > PLAN_BIN_VERSION {
            return Err(FormatError::NewerVersion {
                what: "plan file",
                got: version.into(),
                supported: PLAN_BIN_VERSION,
            });
        }
        ensure(
            version >= 1,
            "plan file version",
            version,
            format!("1 to {PLAN_BIN_VERSION}"),
        )?;
        ensure(
            bytes.len() <= MAX_PLAN_BYTES,
            "plan file's bytes",
            bytes.len(),
            format!("at most {MAX_PLAN_BYTES}"),
        )?;
        if payload.len() as u64 != u64::from(payload_bytes) {
            return Err(FormatError::size(
                "plan file",
                bytes.len() as u64,
                u64::from(payload_bytes) + HEADER as u64,
            ));
        }
        let actual = checksum(&header[..16], payload);
        if actual != crc {
            return Err(FormatError::Damaged {
                what: "plan file".into(),
                got: format!("{actual:08x}"),
                expected: format!("{crc:08x}"),
            });
        }
        decode(payload)
    }
}

fn decode(payload: &[u8]) -> Result<Plan> {
    let (wire, read): (PlanWire, usize) =
        bincode::decode_from_slice(payload, encoding()).map_err(|reason| undecodable(&reason))?;
    if read != payload.len() {
        return Err(FormatError::size(
            "plan file's payload",
            payload.len() as u64,
            read as u64,
        ));
    }
    let (layers, kv_heads) = (wire.layers as usize, wire.kv_heads as usize);
    for (what, got) in [("layers", layers), ("kv_heads", kv_heads)] {
        ensure(
            (1..=MAX_PLAN_DIM).contains(&got),
            format!("plan's number of {what}"),
            got,
            format!("1 to {MAX_PLAN_DIM}"),
        )?;
    }
    ensure(
        wire.rules.len() == layers * kv_heads,
        "plan's number of rules",
        wire.rules.len(),
        format!("{layers} layers of {kv_heads}"),
    )?;
    let rules: Vec<HeadRule> = wire.rules.into_iter().map(Into::into).collect();
    let plan = Plan {
        name: wire.name,
        sink: wire.sink,
        block: wire.block,
        rules: rules.chunks(kv_heads).map(<[_]>::to_vec).collect(),
        provenance: serde_json::from_str(&wire.provenance_json)
            .map_err(|reason| undecodable(&reason))?,
    };
    plan.check()?;
    Ok(plan)
}

fn checksum(header: &[u8], payload: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(header);
    crc.update(payload);
    crc.finalize()
}

/// The u32 at byte `at`, 0 past the end, which no caller asks for.
fn word(bytes: &[u8], at: usize) -> u32 {
    let word = bytes.get(at..at + 4).and_then(|word| word.try_into().ok());
    u32::from_le_bytes(word.unwrap_or_default())
}

fn count(items: usize) -> Result<u32> {
    u32::try_from(items).map_err(|_wide| {
        FormatError::invalid("plan's count", items, format!("at most {}", u32::MAX))
    })
}

fn undecodable(reason: &dyn std::error::Error) -> FormatError {
    FormatError::Undecodable {
        reason: reason.to_string(),
    }
}

impl From<RuleWire> for HeadRule {
    fn from(rule: RuleWire) -> Self {
        match rule {
            RuleWire::Elastic { alpha, beta } => Self::Elastic { alpha, beta },
            RuleWire::Exact { span } => Self::Exact { span },
        }
    }
}

impl From<HeadRule> for RuleWire {
    fn from(rule: HeadRule) -> Self {
        match rule {
            HeadRule::Elastic { alpha, beta } => Self::Elastic { alpha, beta },
            HeadRule::Exact { span } => Self::Exact { span },
        }
    }
}
