//! Bundles in memory: what `moa-compile build` writes to a folder, for tests that need no folder.

use std::ops::Range;

use moa_format::{
    CHUNK_BYTES, DType, Manifest, ModelConfig, PackedPiece, Plan, Provenance, ShardBuilder,
    TensorSpec, plan_entry, tensors,
};
use moa_runtime_web::{Engine, EngineOptions, Extras, Gpu, GpuOptions, Setup, Variant};
use pollster::block_on;

/// A manifest with its plan and its shards.
#[derive(Debug, Clone)]
pub struct Bundle {
    /// The manifest, written, sealed and read again.
    pub manifest: Manifest,
    /// The plan that the manifest lists.
    pub plan: Plan,
    /// The shards' bytes.
    pub shards: Vec<Vec<u8>>,
}

impl Bundle {
    /// A bundle of the pieces that `piece` gives for the rows of a tensor, each tensor in the type that `dtype` says.
    pub fn build(
        config: ModelConfig,
        plan: Plan,
        mut dtype: impl FnMut(&TensorSpec) -> DType,
        mut piece: impl FnMut(&TensorSpec, Range<u32>) -> PackedPiece,
    ) -> Self {
        let mut builder = ShardBuilder::new();
        let mut shards = Vec::new();
        for spec in tensors(&config) {
            builder
                .begin_tensor(&spec, dtype(&spec), "test")
                .expect("a valid spec");
            while let Some(rows) = builder.next_rows() {
                shards.extend(
                    builder
                        .push_piece(&piece(&spec, rows))
                        .expect("a piece in order"),
                );
            }
        }
        let (last, weights) = builder.finish().expect("all tensors");
        shards.extend(last);
        let (entry, _) = plan_entry(&plan, &config).expect("a plan for this model");
        let manifest = Manifest {
            name: "test".into(),
            model: config,
            tokenizer: None,
            default_plan: plan.name.clone(),
            plans: vec![entry],
            weights,
            files: Vec::new(),
            provenance: Provenance::default(),
        };
        let json = manifest.to_json().expect("a valid manifest");
        let manifest = Manifest::from_json(json).expect("written above");
        Self {
            manifest,
            plan,
            shards: shards.into_iter().map(|shard| shard.data).collect(),
        }
    }

    /// An engine under `plan` at a context, likewise.
    pub fn engine_with(&self, plan: &Plan, context: u32, options: EngineOptions) -> Engine {
        let setup = Setup::new(self.manifest.clone(), plan.clone(), context).expect("a setup");
        self.engine_of(setup, options)
    }

    /// An engine of one of this bundle's setups with the weights in it, on a device of its own with default limits; with
    /// a variant of the kernels that needs features, on one that has these.
    pub fn engine_of(&self, setup: Setup, options: EngineOptions) -> Engine {
        let device = GpuOptions {
            default_limits: options.variant == Variant::BASE,
            extras: Extras::of(options.variant),
            ..GpuOptions::default()
        };
        self.engine_on(device, setup, options)
    }

    /// The same on a device that is asked for so.
    pub fn engine_on(&self, device: GpuOptions, setup: Setup, options: EngineOptions) -> Engine {
        let gpu = block_on(Gpu::open(device, setup.needs()))
            .unwrap_or_else(|error| panic!("MOA_TEST_WGPU=yes, but: {error}"));
        let mut engine = block_on(Engine::new(gpu, setup, options)).expect("an engine");
        for (index, shard) in self.shards.iter().enumerate() {
            for (chunk, bytes) in shard.chunks(CHUNK_BYTES as usize).enumerate() {
                let offset = chunk as u64 * u64::from(CHUNK_BYTES);
                engine
                    .write_shard(index, offset, bytes)
                    .expect("a chunk of this bundle");
            }
        }
        block_on(engine.finish_loading()).expect("everything was written");
        engine
    }
}
