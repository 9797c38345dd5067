//! Twin of `matvec`: one token against the rows of a weight matrix. The definition is `matmul`'s.

pub use crate::matmul::matmul as matvec;
