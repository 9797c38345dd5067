//! Where every byte of the weights lies on the device.
//!
//! The shards follow each other in one long row of bytes, and that row is cut into buffers not at the shards' ends
//! but where a kernel's binding may end: what one kernel reads at once (a layer's query, key and value matrices; gate
//! and up; a matrix with all its pieces) lies in one buffer as long as a default binding holds it. Only a table, which is
//! an embedding or an `lm_head`, has a larger one where the device has such bindings, and that to itself: the larger a
//! buffer, the harder it is to find room for.

use moa_format::{ALIGN, Manifest, Piece, TensorRole};

/// Bytes of a weight buffer at most, but for tables: WebGPU's default binding, which is half its default buffer.
pub(crate) const MAX_BUFFER_BYTES: u64 = 128 << 20;

/// Where every byte of the shards lies on the device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WeightLayout {
    /// First byte of each shard in the row of all shards.
    bases: Vec<u64>,
    /// Where buffers begin, and where the last one ends.
    cuts: Vec<u64>,
    /// Bytes of a binding at most.
    most: u64,
}

impl WeightLayout {
    /// With bindings of `most` bytes at most.
    pub(crate) fn of(manifest: &Manifest, most: u64) -> Self {
        let mut end = 0u64;
        let bases: Vec<u64> = manifest
            .weights
            .shards
            .iter()
            .map(|shard| {
                let base = end.next_multiple_of(ALIGN);
                end = base + u64::from(shard.bytes);
                base
            })
            .collect();
        let mut layout = Self {
            bases,
            cuts: vec![0],
            most,
        };
        layout.cuts = layout.cut(manifest, end);
        layout
    }

    /// Bytes of each buffer.
    pub(crate) fn buffer_bytes(&self) -> impl Iterator<Item = u64> + '_ {
        self.cuts.windows(2).map(|cut| cut[1] - cut[0])
    }

    pub(crate) fn largest_buffer_bytes(&self) -> u64 {
        self.buffer_bytes().max().unwrap_or(0)
    }

    /// Fills buffers with bindings for as long as they fit.
    fn cut(&self, manifest: &Manifest, end: u64) -> Vec<u64> {
        let mut cuts = vec![0];
        let mut begin = 0;
        for (first, last) in self.bindings(manifest) {
            if last - begin > self.most.min(MAX_BUFFER_BYTES) && first > begin {
                begin = first;
                cuts.push(begin);
            }
        }
        cuts.push(end);
        cuts
    }

    /// First byte and end of what is best bound together, in order.
    fn bindings(&self, manifest: &Manifest) -> Vec<(u64, u64)> {
        let specs = moa_format::tensors(&manifest.model);
        let mut list = Vec::new();
        let mut open: Option<(u64, u64)> = None;
        for (tensor, spec) in manifest.weights.tensors.iter().zip(&specs) {
            let alone = |name: &str| spec.name.ends_with(name);
            // A norm begins what is read after it; these end it.
            let begins = spec.role == TensorRole::Norm
                || alone("o_proj.weight")
                || alone("down_proj.weight");
            let table = matches!(spec.role, TensorRole::Embedding | TensorRole::LmHead);
            if begins || table {
                list.extend(open.take());
            }
            let most = match table {
                false => MAX_BUFFER_BYTES,
                true if self.most > MAX_BUFFER_BYTES => self.most,
                // Pieces by themselves, which fill what room there is.
                true => 0,
            };
            for piece in &tensor.pieces {
                let first = self.base(piece);
                let last = first + u64::from(piece.bytes);
                match open {
                    Some((begin, end)) if last - begin > most => {
                        list.push((begin, end));
                        open = Some((first, last));
                    }
                    Some((begin, _)) => open = Some((begin, last)),
                    None => open = Some((first, last)),
                }
            }
        }
        list.extend(open);
        list
    }

    /// First byte of a piece in the row.
    pub(crate) fn base(&self, piece: &Piece) -> u64 {
        self.bases[piece.shard as usize] + u64::from(piece.offset)
    }

    /// First byte of a shard in the row.
    pub(crate) fn shard_base(&self, shard: usize) -> u64 {
        self.bases[shard]
    }

    /// Where a buffer ends in the row.
    pub(crate) fn end_of(&self, buffer: usize) -> u64 {
        self.cuts[buffer + 1]
    }

    /// Bytes of a binding at most.
    pub(crate) fn most(&self) -> u64 {
        self.most
    }

    /// The buffer that holds a byte of the row, and where in it.
    pub(crate) fn locate(&self, byte: u64) -> (usize, u64) {
        let buffer = self.cuts.partition_point(|&cut| cut <= byte) - 1;
        (buffer, byte - self.cuts[buffer])
    }
}

#[cfg(test)]
mod tests {
    use moa_format::{
        DType, EMBEDDING, Family, ModelConfig, PieceLayout, Provenance, RopeConfig, Shard,
        TensorEntry, Weights,
    };

    use super::*;

    /// Llama-3.2-1B's shape with a head of its own, its tables in q8, the rest in q4. Each piece has a shard to itself.
    fn manifest() -> Manifest {
        let model = ModelConfig {
            family: Family::Llama,
            layers: 16,
            hidden_dim: 2048,
            ffn_dim: 8192,
            heads: 32,
            kv_heads: 8,
            head_dim: 64,
            vocab_size: 128_256,
            rms_norm_eps: 1e-5,
            rope: RopeConfig {
                theta: 5e5,
                scaling: None,
            },
            tied_embeddings: false,
            qkv_bias: false,
            max_context: 131_072,
            bos: None,
            eos: vec![2],
        };
        let mut weights = Weights::default();
        for spec in moa_format::tensors(&model) {
            let dtype = match spec.role {
                TensorRole::Norm | TensorRole::Bias => DType::F32,
                TensorRole::Embedding | TensorRole::LmHead => DType::Q8,
                TensorRole::Linear => DType::Q4,
            };
            let rows = moa_format::split_rows(dtype, spec.rows, spec.cols).expect("a shape");
            let pieces = rows
                .into_iter()
                .map(|rows| {
                    let layout = PieceLayout::of(dtype, rows, spec.cols).expect("a shape");
                    let bytes = u32::try_from(layout.bytes).expect("a piece");
                    weights.shards.push(Shard {
                        file: String::new(),
                        bytes,
                        chunk_sha256: Vec::new(),
                    });
                    Piece {
                        rows,
                        shard: u32::try_from(weights.shards.len() - 1).expect("few"),
                        offset: 0,
                        bytes,
                    }
                })
                .collect();
            weights.tensors.push(TensorEntry {
                name: spec.name,
                dtype,
                rows: spec.rows,
                cols: spec.cols,
                source_dtype: String::new(),
                max_error: 0.0,
                pieces,
            });
        }
        Manifest {
            name: String::new(),
            model,
            tokenizer: None,
            default_plan: String::new(),
            plans: Vec::new(),
            weights,
            files: Vec::new(),
            provenance: Provenance::default(),
        }
    }

    #[test]
    fn only_tables_have_buffers_beyond_the_default_binding() {
        let manifest = manifest();
        let head = manifest.model.lm_head();
        let buffers_of = |layout: &WeightLayout, name: &str| {
            let pieces = &manifest.tensor(name).expect("a table").pieces;
            let mut buffers: Vec<usize> = pieces
                .iter()
                .map(|piece| layout.locate(layout.base(piece)).0)
                .collect();
            buffers.dedup();
            buffers.len()
        };
        let table: u64 = manifest.tensor(head).map_or(0, |tensor| {
            tensor
                .pieces
                .iter()
                .map(|piece| u64::from(piece.bytes))
                .sum()
        });
        let default = WeightLayout::of(&manifest, MAX_BUFFER_BYTES);
        let all: u64 = default.buffer_bytes().sum();
        // In how many bindings a table lies: as few as the device has room for.
        for (most, runs) in [
            (MAX_BUFFER_BYTES, 3),
            (256 << 20, 2),
            (table - 1, 2),
            (table, 1),
            (u64::MAX, 1),
        ] {
            let layout = WeightLayout::of(&manifest, most);
            assert_eq!(buffers_of(&layout, EMBEDDING), runs, "{most}");
            assert_eq!(buffers_of(&layout, head), runs, "{most}");
            assert_eq!(layout.buffer_bytes().sum::<u64>(), all, "not a byte more");
            assert!(layout.buffer_bytes().all(|bytes| bytes <= most));
            let large = layout
                .buffer_bytes()
                .filter(|bytes| *bytes > MAX_BUFFER_BYTES);
            assert_eq!(large.count(), if most == MAX_BUFFER_BYTES { 0 } else { 2 });
        }
        assert_eq!(
            WeightLayout::of(&manifest, u64::MAX).buffer_bytes().max(),
            Some(table)
        );
        // What layers bind together is cut where it must be.
        let small = WeightLayout::of(&manifest, 64 << 20);
        assert!(small.buffer_bytes().all(|bytes| bytes <= 64 << 20));
    }
}
