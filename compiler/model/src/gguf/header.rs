//! The bounded reader of a GGUF header: the first and only code that sees these bytes unchecked.
//!
//! Every count, length and extent is compared with the bytes that are left before anything is allocated, so
//! a damaged header costs neither memory nor a panic. Values of tensors are not its business: those go to
//! candle in whole blocks whose extents were checked here.
//!
//! Layout (little-endian): magic, version, tensor count, metadata count, metadata (key, type, value), tensors
//! (name, dimensions fastest first, type, offset), padding to the alignment, data.

use std::collections::BTreeMap;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use super::value::{Array, Metadata, Value};
use crate::error::shape_text;
use crate::tensor::GGUF_TYPES;
use crate::{ModelError, Result, SourceType};

/// A header longer than this is refused; vocabularies of 250,000 words take about 15 MB.
const MAX_HEADER_BYTES: u64 = 256 << 20;
/// A text longer than this is refused; chat templates take some 10 kB.
const MAX_TEXT_BYTES: u64 = 16 << 20;
const MAX_KEY_BYTES: u64 = 1 << 16;
const MAX_DEPTH: u32 = 4;
const MAX_DIMS: u32 = 4;
const MAX_ALIGNMENT: u64 = 1 << 16;
const DEFAULT_ALIGNMENT: u64 = 32;

/// Where a tensor lies in the file, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TensorInfo {
    pub(crate) source_type: SourceType,
    /// Dimensions as Hugging Face counts them: rows first.
    pub(crate) shape: Vec<u64>,
    /// First byte, from the beginning of the file.
    pub(crate) offset: u64,
    /// Length in bytes.
    pub(crate) bytes: u64,
}

/// Everything in a GGUF file besides the weights.
#[derive(Debug, Clone)]
pub(crate) struct Header {
    pub(crate) metadata: Metadata,
    pub(crate) tensors: BTreeMap<String, TensorInfo>,
}

impl Header {
    /// Reads and checks the header of the file at `path`, which is `file_len` bytes long.
    pub(crate) fn read(reader: impl Read + Seek, path: &Path, file_len: u64) -> Result<Self> {
        let mut cursor = Cursor {
            reader: BufReader::new(reader),
            path,
            position: 0,
            file_len,
        };
        cursor
            .reader
            .seek(SeekFrom::Start(0))
            .map_err(|source| ModelError::io(path, source))?;
        cursor.header()
    }
}

struct Cursor<'a, R> {
    reader: BufReader<R>,
    path: &'a Path,
    position: u64,
    file_len: u64,
}

impl<R: Read> Cursor<'_, R> {
    fn header(&mut self) -> Result<Header> {
        let magic = self.bytes::<4>("magic")?;
        if &magic != b"GGUF" {
            return Err(self.damaged(
                0,
                "magic",
                "GGUF",
                format!("{:?}", magic.escape_ascii().to_string()),
            ));
        }
        let version = self.u32("version")?;
        if !(2..=3).contains(&version) {
            let got = if version.swap_bytes() <= 3 {
                format!("{} in big-endian order", version.swap_bytes())
            } else {
                version.to_string()
            };
            return Err(ModelError::unsupported(
                "GGUF version",
                got,
                "2 and 3, little-endian",
            ));
        }
        // The least that an entry of each kind can take on disk.
        let tensor_count = self.count("tensor count", 8 + 4 + 4 + 8)?;
        let metadata_count = self.count("metadata count", 8 + 4 + 1)?;

        let mut values = BTreeMap::new();
        for _ in 0..metadata_count {
            let at = self.position;
            let key = self.text("metadata key", MAX_KEY_BYTES)?;
            let kind = self.u32("metadata type")?;
            let value = self.value(kind, &key)?;
            if values.insert(key.clone(), value).is_some() {
                return Err(self.damaged(
                    at,
                    "metadata key",
                    "a key that has not come before",
                    key,
                ));
            }
        }
        let metadata = Metadata {
            origin: self.path.to_owned(),
            values,
        };

        let mut tensors = BTreeMap::new();
        for _ in 0..tensor_count {
            let at = self.position;
            let (name, info) = self.tensor()?;
            if tensors.insert(name.clone(), info).is_some() {
                return Err(self.damaged(
                    at,
                    "tensor name",
                    "a name that has not come before",
                    name,
                ));
            }
        }
        let alignment = match metadata.u32("general.alignment")? {
            None => DEFAULT_ALIGNMENT,
            Some(alignment) => u64::from(alignment),
        };
        if !alignment.is_power_of_two() || alignment > MAX_ALIGNMENT {
            return Err(metadata.bad(
                "general.alignment",
                format!("a power of two up to {MAX_ALIGNMENT}"),
                alignment.to_string(),
            ));
        }
        self.place(&mut tensors, alignment)?;
        Ok(Header { metadata, tensors })
    }

    /// Turns offsets into places in the file, and checks that no tensor leaves the file or overlaps another.
    fn place(&self, tensors: &mut BTreeMap<String, TensorInfo>, alignment: u64) -> Result<()> {
        let data = self.position.next_multiple_of(alignment);
        let mut extents = Vec::with_capacity(tensors.len());
        for (name, info) in tensors.iter_mut() {
            let bad = |expected: String, got: String| {
                self.damaged(self.position, format!("tensor {name}"), expected, got)
            };
            if !info.offset.is_multiple_of(alignment) {
                return Err(bad(
                    format!("an offset that is a multiple of {alignment}"),
                    format!("at offset {}", info.offset),
                ));
            }
            let start = data.checked_add(info.offset);
            let end = start.and_then(|start| start.checked_add(info.bytes));
            let (Some(start), Some(end)) = (start, end) else {
                return Err(bad(
                    "an extent within the file".into(),
                    format!("at offset {}", info.offset),
                ));
            };
            if end > self.file_len {
                return Err(bad(
                    format!("an end within the file of {} bytes", self.file_len),
                    format!("{} bytes up to {end}", info.bytes),
                ));
            }
            info.offset = start;
            extents.push((start, end, name));
        }
        extents.sort_unstable();
        for pair in extents.windows(2) {
            let [(_, end, first), (start, _, second)] = pair else {
                continue;
            };
            if end > start {
                let expected = format!("a start at or after {end}, where tensor {first} ends");
                return Err(self.damaged(
                    self.position,
                    format!("tensor {second}"),
                    expected,
                    format!("at {start}"),
                ));
            }
        }
        Ok(())
    }

    fn tensor(&mut self) -> Result<(String, TensorInfo)> {
        let at = self.position;
        let name = self.text("tensor name", MAX_KEY_BYTES)?;
        let dims = self.u32("number of dimensions")?;
        if !(1..=MAX_DIMS).contains(&dims) {
            return Err(self.damaged(
                at,
                format!("dimensions of tensor {name}"),
                format!("1 to {MAX_DIMS}"),
                dims.to_string(),
            ));
        }
        let mut shape = Vec::new();
        for _ in 0..dims {
            shape.push(self.u64("dimension")?);
        }
        shape.reverse();
        let number = self.u32("tensor type")?;
        let offset = self.u64("tensor offset")?;
        let source_type = SourceType::from_gguf(number).map_err(|got| {
            ModelError::unsupported(
                format!("quantization type of tensor {name}"),
                got,
                GGUF_TYPES,
            )
        })?;
        let block = source_type.block_weights();
        let cols = shape.last().copied().unwrap_or(0);
        let weights = shape
            .iter()
            .try_fold(1u64, |product, &dim| product.checked_mul(dim))
            .filter(|&n| n > 0);
        let bytes = weights
            .and_then(|n| source_type.bytes_of(n))
            .filter(|_| cols.is_multiple_of(block as u64));
        let Some(bytes) = bytes else {
            let expected = format!(
                "no empty dimension, rows in blocks of {block} and less than 2^64 bytes in all"
            );
            return Err(self.damaged(
                at,
                format!("shape of tensor {name}"),
                expected,
                shape_text(&shape),
            ));
        };
        Ok((
            name,
            TensorInfo {
                source_type,
                shape,
                offset,
                bytes,
            },
        ))
    }

    fn value(&mut self, kind: u32, key: &str) -> Result<Value> {
        Ok(match kind {
            0 => Value::Unsigned(u64::from(self.bytes::<1>(key)?[0])),
            1 => Value::Signed(i64::from(i8::from_le_bytes(self.bytes(key)?))),
            2 => Value::Unsigned(u64::from(u16::from_le_bytes(self.bytes(key)?))),
            3 => Value::Signed(i64::from(i16::from_le_bytes(self.bytes(key)?))),
            4 => Value::Unsigned(u64::from(self.u32(key)?)),
            5 => Value::Signed(i64::from(i32::from_le_bytes(self.bytes(key)?))),
            6 => Value::Float(decimal(f32::from_le_bytes(self.bytes(key)?))),
            7 => Value::Bool(self.boolean(key)?),
            8 => Value::Text(self.text(key, MAX_TEXT_BYTES)?),
            9 => Value::Array(self.array(key, 0)?),
            10 => Value::Unsigned(self.u64(key)?),
            11 => Value::Signed(i64::from_le_bytes(self.bytes(key)?)),
            12 => Value::Float(f64::from_le_bytes(self.bytes(key)?)),
            other => return Err(self.bad_type(key, other)),
        })
    }

    fn array(&mut self, key: &str, depth: u32) -> Result<Array> {
        if depth > MAX_DEPTH {
            return Err(self.damaged(
                self.position,
                format!("array {key}"),
                format!("at most {MAX_DEPTH} levels"),
                "deeper",
            ));
        }
        let kind = self.u32("array type")?;
        let least = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            8 | 10 | 11 | 12 => 8,
            9 => 12,
            other => return Err(self.bad_type(key, other)),
        };
        let len = self.count(&format!("length of array {key}"), least)?;
        Ok(match kind {
            0 => Array::U8(self.numbers(key, len, u8::from_le_bytes)?),
            1 => Array::I8(self.numbers(key, len, i8::from_le_bytes)?),
            2 => Array::U16(self.numbers(key, len, u16::from_le_bytes)?),
            3 => Array::I16(self.numbers(key, len, i16::from_le_bytes)?),
            4 => Array::U32(self.numbers(key, len, u32::from_le_bytes)?),
            5 => Array::I32(self.numbers(key, len, i32::from_le_bytes)?),
            6 => Array::F32(self.numbers(key, len, f32::from_le_bytes)?),
            7 => Array::Bool(self.items(key, len, |cursor, key| cursor.boolean(key))?),
            8 => Array::Text(self.items(key, len, |cursor, key| cursor.text(key, MAX_TEXT_BYTES))?),
            9 => Array::Nested(self.items(key, len, |cursor, key| cursor.array(key, depth + 1))?),
            10 => Array::U64(self.numbers(key, len, u64::from_le_bytes)?),
            11 => Array::I64(self.numbers(key, len, i64::from_le_bytes)?),
            _ => Array::F64(self.numbers(key, len, f64::from_le_bytes)?),
        })
    }

    fn numbers<T, const N: usize>(
        &mut self,
        key: &str,
        len: u64,
        read: fn([u8; N]) -> T,
    ) -> Result<Vec<T>> {
        self.items(key, len, |cursor, key| cursor.bytes(key).map(read))
    }

    fn items<T>(
        &mut self,
        key: &str,
        len: u64,
        mut read: impl FnMut(&mut Self, &str) -> Result<T>,
    ) -> Result<Vec<T>> {
        // Grown as the elements come: the length is bounded by the file, not yet by what is in it.
        let mut items = Vec::new();
        for _ in 0..len {
            items.push(read(self, key)?);
        }
        Ok(items)
    }

    fn boolean(&mut self, what: &str) -> Result<bool> {
        let at = self.position;
        match self.bytes::<1>(what)? {
            [0] => Ok(false),
            [1] => Ok(true),
            [other] => Err(self.damaged(at, what, "0 or 1", other.to_string())),
        }
    }

    fn text(&mut self, what: &str, limit: u64) -> Result<String> {
        let at = self.position;
        let len = self.count(&format!("length of {what}"), 1)?;
        if len > limit {
            return Err(self.damaged(
                at,
                format!("length of {what}"),
                format!("at most {limit}"),
                len.to_string(),
            ));
        }
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
        self.fill(&mut bytes, what)?;
        // Tokens of some published vocabularies are no valid UTF-8; like every reader of this format, take
        // them with a replacement character rather than refuse the model.
        Ok(String::from_utf8(bytes)
            .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
    }

    /// A count of things of which each takes at least `least` bytes of what is left.
    fn count(&mut self, what: &str, least: u64) -> Result<u64> {
        let at = self.position;
        let count = self.u64(what)?;
        let left = self.left();
        if count.checked_mul(least).is_none_or(|bytes| bytes > left) {
            return Err(self.damaged(
                at,
                what,
                format!("what fits into the {left} bytes that are left"),
                count.to_string(),
            ));
        }
        Ok(count)
    }

    fn left(&self) -> u64 {
        self.file_len
            .min(MAX_HEADER_BYTES)
            .saturating_sub(self.position)
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
        self.bytes(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &str) -> Result<u64> {
        self.bytes(what).map(u64::from_le_bytes)
    }

    fn bytes<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.fill(&mut bytes, what)?;
        Ok(bytes)
    }

    fn fill(&mut self, bytes: &mut [u8], what: &str) -> Result<()> {
        let (need, left) = (bytes.len() as u64, self.left());
        if need > left {
            let whole = if self.file_len > MAX_HEADER_BYTES {
                "a header within 256 MiB"
            } else {
                "more bytes in the file"
            };
            return Err(self.damaged(
                self.position,
                what,
                format!("{need} bytes ({whole})"),
                format!("{left} bytes"),
            ));
        }
        self.reader
            .read_exact(bytes)
            .map_err(|source| ModelError::io(self.path, source))?;
        self.position += need;
        Ok(())
    }

    fn bad_type(&self, key: &str, got: u32) -> ModelError {
        self.damaged(
            self.position,
            format!("type of {key}"),
            "0 to 12",
            got.to_string(),
        )
    }

    fn damaged(
        &self,
        offset: u64,
        what: impl Into<String>,
        expected: impl Into<String>,
        got: impl Into<String>,
    ) -> ModelError {
        ModelError::DamagedGguf {
            path: self.path.to_owned(),
            offset,
            what: what.into(),
            expected: expected.into(),
            got: got.into(),
        }
    }
}

/// The shortest decimal number that rounds to this f32: 1e-5 where widening gives 9.999999747378752e-6.
fn decimal(value: f32) -> f64 {
    value
        .to_string()
        .parse()
        .unwrap_or_else(|_| f64::from(value))
}
