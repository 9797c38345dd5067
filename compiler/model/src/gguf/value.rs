//! Metadata of a GGUF file: values with their types, and typed access that names the key in its refusals.
//!
//! Arrays keep their element type, so that a header never takes much more memory than it has bytes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::{ModelError, Result};

/// One metadata value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    Text(String),
    Array(Array),
}

/// An array of metadata values of one type.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Array {
    U8(Vec<u8>),
    U16(Vec<u16>),
    U32(Vec<u32>),
    U64(Vec<u64>),
    I8(Vec<i8>),
    I16(Vec<i16>),
    I32(Vec<i32>),
    I64(Vec<i64>),
    F32(Vec<f32>),
    F64(Vec<f64>),
    Bool(Vec<bool>),
    Text(Vec<String>),
    Nested(Vec<Self>),
}

impl Array {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::U8(v) => v.len(),
            Self::U16(v) => v.len(),
            Self::U32(v) => v.len(),
            Self::U64(v) => v.len(),
            Self::I8(v) => v.len(),
            Self::I16(v) => v.len(),
            Self::I32(v) => v.len(),
            Self::I64(v) => v.len(),
            Self::F32(v) => v.len(),
            Self::F64(v) => v.len(),
            Self::Bool(v) => v.len(),
            Self::Text(v) => v.len(),
            Self::Nested(v) => v.len(),
        }
    }

    /// The integers of an array of any integer type.
    fn integers(&self) -> Option<Vec<i64>> {
        Some(match self {
            Self::U8(v) => v.iter().map(|&x| x.into()).collect(),
            Self::U16(v) => v.iter().map(|&x| x.into()).collect(),
            Self::U32(v) => v.iter().map(|&x| x.into()).collect(),
            Self::U64(v) => v
                .iter()
                .map(|&x| i64::try_from(x).unwrap_or(i64::MAX))
                .collect(),
            Self::I8(v) => v.iter().map(|&x| x.into()).collect(),
            Self::I16(v) => v.iter().map(|&x| x.into()).collect(),
            Self::I32(v) => v.iter().map(|&x| x.into()).collect(),
            Self::I64(v) => v.clone(),
            _ => return None,
        })
    }
}

impl Value {
    /// What a message says about a value of the wrong kind.
    fn describe(&self) -> String {
        match self {
            Self::Unsigned(v) => v.to_string(),
            Self::Signed(v) => v.to_string(),
            Self::Float(v) => v.to_string(),
            Self::Bool(v) => v.to_string(),
            Self::Text(v) => format!("the text {:?}", v.chars().take(40).collect::<String>()),
            Self::Array(v) => format!("an array of {}", v.len()),
        }
    }
}

/// All metadata of a file, by key.
#[derive(Debug, Clone, Default)]
pub(crate) struct Metadata {
    pub(super) origin: PathBuf,
    pub(super) values: BTreeMap<String, Value>,
}

impl Metadata {
    pub(crate) fn origin(&self) -> &Path {
        &self.origin
    }

    pub(crate) fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key)
    }

    pub(crate) fn bad(
        &self,
        key: &str,
        expected: impl Into<String>,
        got: impl Into<String>,
    ) -> ModelError {
        ModelError::BadField {
            origin: self.origin.clone(),
            field: key.into(),
            expected: expected.into(),
            got: got.into(),
        }
    }

    fn read<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => match read(value) {
                Some(read) => Ok(Some(read)),
                None => Err(self.bad(key, expected, value.describe())),
            },
        }
    }

    /// An integer of any width, if the key exists.
    pub(crate) fn u32(&self, key: &str) -> Result<Option<u32>> {
        self.read(
            key,
            "an integer from 0 to 4294967295",
            |value| match *value {
                Value::Unsigned(v) => u32::try_from(v).ok(),
                Value::Signed(v) => u32::try_from(v).ok(),
                _ => None,
            },
        )
    }

    /// A finite float, if the key exists: f32 values become the decimal number that their author wrote.
    pub(crate) fn f64(&self, key: &str) -> Result<Option<f64>> {
        self.read(key, "a finite number", |value| match *value {
            Value::Float(v) if v.is_finite() => Some(v),
            Value::Unsigned(v) => u32::try_from(v).ok().map(f64::from),
            _ => None,
        })
    }

    pub(crate) fn bool(&self, key: &str) -> Result<Option<bool>> {
        self.read(key, "true or false", |value| {
            if let Value::Bool(v) = value {
                Some(*v)
            } else {
                None
            }
        })
    }

    pub(crate) fn text(&self, key: &str) -> Result<Option<&str>> {
        self.read(key, "a text", |value| {
            if let Value::Text(v) = value {
                Some(v.as_str())
            } else {
                None
            }
        })
    }

    pub(crate) fn texts(&self, key: &str) -> Result<Option<&[String]>> {
        self.read(key, "an array of texts", |value| match value {
            Value::Array(Array::Text(v)) => Some(v.as_slice()),
            _ => None,
        })
    }

    pub(crate) fn integers(&self, key: &str) -> Result<Option<Vec<i64>>> {
        self.read(key, "an array of integers", |value| match value {
            Value::Array(array) => array.integers(),
            _ => None,
        })
    }

    pub(crate) fn floats(&self, key: &str) -> Result<Option<&[f32]>> {
        self.read(key, "an array of finite F32 numbers", |value| match value {
            Value::Array(Array::F32(v)) if v.iter().all(|x| x.is_finite()) => Some(v.as_slice()),
            _ => None,
        })
    }

    /// As [`Self::u32`], where the key must exist.
    pub(crate) fn required_u32(&self, key: &str) -> Result<u32> {
        self.u32(key)?
            .ok_or_else(|| self.bad(key, "an integer from 0 to 4294967295", "absent"))
    }

    /// As [`Self::text`], where the key must exist.
    pub(crate) fn required_text(&self, key: &str) -> Result<&str> {
        self.text(key)?
            .ok_or_else(|| self.bad(key, "a text", "absent"))
    }
}
