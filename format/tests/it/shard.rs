//! Shards: how pieces are laid, and what the builder refuses.

use moa_format::{
    ALIGN, CHUNK_BYTES, DType, FormatError, MAX_SHARD_BYTES, PackedPiece, PieceLayout,
    ShardBuilder, TensorRole, TensorSpec, Weights, chunk_sha256, shard_file,
};

use crate::fixture::{Random, bundle};

fn spec(name: &str, rows: u32, cols: u32) -> TensorSpec {
    TensorSpec {
        name: name.into(),
        rows,
        cols,
        role: TensorRole::Linear,
    }
}

/// Bytes of the right size that say nothing.
fn filler(random: &mut Random, dtype: DType, rows: u32, cols: u32) -> PackedPiece {
    let bytes = PieceLayout::of(dtype, rows, cols).unwrap().bytes;
    let byte = random.next() as u8;
    PackedPiece {
        bytes: vec![byte; usize::try_from(bytes).unwrap()],
        max_error: 0.25,
    }
}

/// Three tensors: one that fits, one of several pieces, one that fills up.
fn large() -> (Weights, Vec<Vec<u8>>, Vec<TensorSpec>) {
    let specs = vec![
        spec("a", 300, 33),
        spec("b", 131_072, 512),
        spec("c", 1, 576),
    ];
    let mut random = Random(17);
    let mut builder = ShardBuilder::new();
    let mut shards = Vec::new();
    for (spec, dtype) in specs.iter().zip([DType::F16, DType::Q4, DType::F32]) {
        builder.begin_tensor(spec, dtype, "BF16").unwrap();
        while let Some(rows) = builder.next_rows() {
            let rows = rows.end - rows.start;
            let piece = filler(&mut random, dtype, rows, spec.cols);
            shards.extend(builder.push_piece(&piece).unwrap());
        }
    }
    let (last, weights) = builder.finish().unwrap();
    shards.extend(last);
    for (index, shard) in shards.iter().enumerate() {
        assert_eq!(shard.entry, weights.shards[index]);
        assert_eq!(shard.entry.file, shard_file(index));
    }
    let data = shards.into_iter().map(|shard| shard.data).collect();
    (weights, data, specs)
}

#[test]
fn large_tensors_run_over_several_shards() {
    let (weights, data, specs) = large();
    weights.check(&specs).unwrap();
    assert_eq!(data.len(), 3);
    for (shard, data) in weights.shards.iter().zip(&data) {
        assert!(shard.bytes <= MAX_SHARD_BYTES);
        assert_eq!(shard.chunk_sha256, chunk_sha256(data));
        shard.check_bytes(data).unwrap();
    }
    let b = &weights.tensors[1];
    assert_eq!(b.pieces.len(), 2);
    assert_eq!(b.max_error, 0.25);
    assert_eq!(b.bytes(), u64::from(b.pieces[0].bytes + b.pieces[1].bytes));
    let rows: Vec<_> = b.row_ranges().map(|(rows, _)| rows).collect();
    assert_eq!(rows[0].start, 0);
    assert_eq!(rows[0].end, rows[1].start);
    assert_eq!(rows[1].end, 131_072);
    for piece in weights.tensors.iter().flat_map(|t| &t.pieces) {
        assert_eq!(u64::from(piece.offset) % ALIGN, 0);
    }
}

#[test]
fn damaged_chunks_are_found() {
    let (weights, mut data, _) = large();
    let (shard, data) = (&weights.shards[1], &mut data[1]);
    let chunk = CHUNK_BYTES as usize;
    shard.check_chunk(1, &data[chunk..2 * chunk]).unwrap();
    data[chunk + 5] ^= 4;
    assert!(matches!(
        shard.check_chunk(1, &data[chunk..2 * chunk]),
        Err(FormatError::Damaged { .. })
    ));
    assert!(shard.check_bytes(data).is_err());
    assert!(shard.check_chunk(0, &data[..chunk]).is_ok());
    assert!(shard.check_chunk(0, &data[..chunk - 1]).is_err());
    assert!(shard.check_chunk(99, &[]).is_err());
    assert!(shard.check_chunk(usize::MAX, &[]).is_err());
    assert!(shard.check_bytes(&data[1..]).is_err());
}

type Lie = fn(&mut Weights);

/// Each change of the lists must be noticed: every count, offset, extent, order and overlap.
#[test]
fn every_lie_in_the_lists_is_refused() {
    let (weights, _, specs) = large();
    let lies: [(&str, Lie); 24] = [
        ("offset not aligned", |w| w.tensors[1].pieces[0].offset += 4),
        ("overlap", |w| w.tensors[2].pieces[0].offset = 0),
        ("gap", |w| w.tensors[2].pieces[0].offset += 256),
        ("another shard", |w| w.tensors[1].pieces[1].shard = 0),
        ("a shard skipped", |w| w.tensors[1].pieces[0].shard = 2),
        ("no such shard", |w| w.tensors[2].pieces[0].shard = 9),
        ("shard index of 2^32 - 1", |w| {
            w.tensors[2].pieces[0].shard = u32::MAX;
        }),
        ("piece bytes", |w| w.tensors[0].pieces[0].bytes += 4),
        ("piece bytes huge", |w| {
            w.tensors[0].pieces[0].bytes = u32::MAX;
        }),
        ("piece rows", |w| w.tensors[1].pieces[0].rows -= 1),
        ("piece rows none", |w| w.tensors[0].pieces[0].rows = 0),
        ("piece rows huge", |w| {
            w.tensors[0].pieces[0].rows = u32::MAX;
        }),
        ("no pieces", |w| w.tensors[2].pieces.clear()),
        ("a piece twice", |w| {
            let piece = w.tensors[2].pieces[0];
            w.tensors[2].pieces.push(piece);
        }),
        ("rows", |w| w.tensors[0].rows += 1),
        ("cols", |w| w.tensors[0].cols = 32),
        ("dtype", |w| w.tensors[0].dtype = DType::Q4),
        ("error is no number", |w| w.tensors[0].max_error = f32::NAN),
        ("name", |w| w.tensors[0].name.push('x')),
        ("order", |w| w.tensors.swap(0, 2)),
        ("a tensor missing", |w| w.tensors.truncate(2)),
        ("a tensor more", |w| w.tensors.push(w.tensors[2].clone())),
        ("shard shorter", |w| w.shards[1].bytes -= 4),
        ("shard longer", |w| w.shards[2].bytes += 4),
    ];
    for (what, lie) in lies {
        let mut lying = weights.clone();
        lie(&mut lying);
        assert_ne!(lying, weights, "{what}");
        assert!(lying.check(&specs).is_err(), "{what}");
    }
    let more: [(&str, Lie); 7] = [
        ("a shard more", |w| w.shards.push(w.shards[0].clone())),
        ("a shard missing", |w| w.shards.truncate(2)),
        ("no shards", |w| w.shards.clear()),
        ("shard too large", |w| w.shards[0].bytes = u32::MAX),
        ("shard's name", |w| {
            w.shards[0].file = "../weights-000.bin".into();
        }),
        ("a checksum missing", |w| {
            w.shards[1].chunk_sha256.truncate(1);
        }),
        ("a checksum cut", |w| {
            w.shards[0].chunk_sha256[0].truncate(63);
        }),
    ];
    for (what, lie) in more {
        let mut lying = weights.clone();
        lie(&mut lying);
        assert_ne!(lying, weights, "{what}");
        assert!(lying.check(&specs).is_err(), "{what}");
    }
}

#[test]
fn the_builder_refuses_what_is_out_of_turn() {
    let mut random = Random(19);
    let mut builder = ShardBuilder::new();
    let piece = filler(&mut random, DType::F32, 4, 8);
    assert!(builder.push_piece(&piece).is_err(), "before any tensor");
    builder
        .begin_tensor(&spec("a", 4, 8), DType::F32, "F32")
        .unwrap();
    assert_eq!(builder.next_rows(), Some(0..4));
    assert!(
        builder
            .begin_tensor(&spec("b", 4, 8), DType::F32, "F32")
            .is_err(),
        "the first is not complete"
    );
    assert!(
        builder
            .push_piece(&filler(&mut random, DType::F32, 3, 8))
            .is_err(),
        "too short"
    );
    let mut wrong = piece.clone();
    wrong.max_error = f32::NAN;
    assert!(builder.push_piece(&wrong).is_err());
    assert_eq!(builder.push_piece(&piece).unwrap(), None);
    assert_eq!(builder.next_rows(), None);
    assert!(builder.push_piece(&piece).is_err(), "one too many");
    assert!(
        builder
            .begin_tensor(&spec("c", 4, 33), DType::Q4, "F32")
            .is_err(),
        "no whole groups"
    );
    let (last, weights) = builder.finish().unwrap();
    assert_eq!(last.unwrap().data, piece.bytes);
    weights.check(&[spec("a", 4, 8)]).unwrap();

    let mut builder = ShardBuilder::new();
    builder
        .begin_tensor(&spec("a", 4, 8), DType::F32, "F32")
        .unwrap();
    assert!(builder.finish().is_err(), "incomplete");
    let (last, weights) = ShardBuilder::new().finish().unwrap();
    assert!(last.is_none() && weights.shards.is_empty());
}

#[test]
fn the_same_weights_give_the_same_bytes() {
    assert_eq!(bundle().1, bundle().1);
}
