//! JavaScript's view of the engine: the only folder that knows JavaScript. Errors become `Error` objects with
//! `name = "MoaError"`, `code` and `hint`; numbers that may exceed 32 bits cross as JSON.

mod options;

use js_sys::{Float32Array, Uint8Array, Uint32Array};
use moa_format::{CHUNK_BYTES, Plan};
use wasm_bindgen::prelude::*;

use options::{
    CreateOptions, JsEngineOptions, JsResult, JsSamplingOptions, json, manifest, options, sampler,
    whole,
};

use crate::buffers::MAX_DECODE_BATCH;
use crate::engine::Engine;
use crate::error::EngineError;
use crate::gpu::{Gpu, GpuOptions};
use crate::setup::Setup;
use crate::share::Weights;
use crate::snapshot::RingCopy;

/// Version of this module.
#[wasm_bindgen]
pub fn version() -> String {
    env!("CARGO_PKG_VERSION").to_owned()
}

/// Bytes under one hash: what `writeShard` takes at a time.
#[wasm_bindgen(js_name = chunkBytes)]
pub fn chunk_bytes() -> u32 {
    CHUNK_BYTES
}

#[wasm_bindgen]
extern "C" {
    /// Milliseconds since some moment, whatever the time of day is set to.
    #[wasm_bindgen(js_namespace = performance)]
    fn now() -> f64;
}

/// Seconds since some moment.
pub(crate) fn clock() -> f64 {
    now() / 1e3
}

/// Tokens that one `decode` call gives at most.
#[wasm_bindgen(js_name = maxDecodeBatch)]
pub fn max_decode_batch() -> u32 {
    MAX_DECODE_BATCH
}

/// Exact KV bytes of a plan at a context, without a GPU: JSON as from `MoaEngine.kvBytes()`.
#[wasm_bindgen(js_name = predictKvBytes)]
pub fn predict_kv_bytes(
    manifest_json: &str,
    plan_name: &str,
    plan_bytes: Option<Vec<u8>>,
    context: u32,
) -> JsResult<String> {
    let manifest = manifest(manifest_json)?;
    let plan = Setup::choose_plan(&manifest, plan_name, plan_bytes.as_deref())?;
    json(&Setup::new(manifest, plan, context)?.kv_report()?)
}

/// A plan file (`plan-<name>.bin`, or plan JSON) as plan JSON.
#[wasm_bindgen(js_name = planToJson)]
pub fn plan_to_json(plan_bytes: &[u8]) -> JsResult<String> {
    let plan = if plan_bytes.starts_with(b"{") {
        Plan::from_json(plan_bytes)
    } else {
        Plan::from_bin(plan_bytes)
    };
    Ok(plan
        .and_then(|plan| plan.to_json())
        .map_err(|source| EngineError::Plan { source })?)
}

/// One context of one model on a GPU device.
#[wasm_bindgen]
#[derive(Debug)]
pub struct MoaEngine {
    engine: Engine,
}

#[wasm_bindgen]
impl MoaEngine {
    /// Asks for a device and makes everything but the weights.
    pub async fn create(
        manifest_json: String,
        plan_name: String,
        plan_bytes: Option<Vec<u8>>,
        context: u32,
        create_options: Option<JsEngineOptions>,
    ) -> JsResult<Self> {
        let asked: CreateOptions = options(create_options)?;
        let manifest = manifest(&manifest_json)?;
        let setup = asked.setup(manifest, &plan_name, plan_bytes.as_deref(), context)?;
        let (variant, extras) = asked.variant()?;
        let gpu_options = GpuOptions {
            default_limits: asked.default_limits,
            extras,
            low_power: asked.power_preference.as_deref() == Some("low-power"),
            ..GpuOptions::default()
        };
        let gpu = Gpu::open(gpu_options, setup.needs()).await?;
        Ok(Engine::new(gpu, setup, asked.engine(variant)).await?.into())
    }

    /// The weights, for other engines on this device, once every chunk is there.
    pub fn weights(&self) -> JsResult<MoaWeights> {
        Ok(MoaWeights(self.engine.weights()?))
    }

    /// Checks a whole chunk of a weight shard against its hash and sends it to the device.
    #[wasm_bindgen(js_name = writeShard)]
    pub fn write_shard(&mut self, index: u32, offset: f64, bytes: &[u8]) -> JsResult<()> {
        let offset = whole(offset)?;
        Ok(self.engine.write_shard(index as usize, offset, bytes)?)
    }

    /// Where a chunk of a shard lies: buffer, offset in it, bytes, and again where it lies in two. The label of a buffer
    /// is `weights.` and its number.
    #[wasm_bindgen(js_name = chunkPlaces)]
    pub fn chunk_places(&self, index: u32, offset: f64) -> JsResult<Uint32Array> {
        let places = self.engine.chunk_places(index as usize, whole(offset)?)?;
        let numbers: Vec<u32> = places
            .into_iter()
            .flat_map(|(buffer, at, bytes)| [buffer as u64, at, bytes])
            .map(|number| u32::try_from(number).unwrap_or(u32::MAX))
            .collect();
        Ok(Uint32Array::from(numbers.as_slice()))
    }

    /// Takes note of a chunk that JavaScript has checked against its hash and written to its places itself,
    /// so that it never passes through this module's memory.
    #[wasm_bindgen(js_name = acceptChunk)]
    pub fn accept_chunk(&mut self, index: u32, offset: f64) -> JsResult<()> {
        let offset = whole(offset)?;
        Ok(self.engine.accept_chunk(index as usize, offset)?)
    }

    /// Waits for the uploads, checks that nothing is missing, and warms up.
    #[wasm_bindgen(js_name = finishLoading)]
    pub async fn finish_loading(&mut self) -> JsResult<()> {
        Ok(self.engine.finish_loading().await?)
    }

    /// Tries the variants of the kernels that the device has on the loaded model, goes on with the quickest, and resolves
    /// with its name; with nothing on a software adapter, where there is nothing to gain. Empties the cache.
    pub async fn tune(&mut self) -> JsResult<Option<String>> {
        if self.engine.gpu().is_software() {
            return Ok(None);
        }
        Ok(Some(self.engine.tune().await?.to_string()))
    }

    /// Takes one chunk from the front of `ids` and resolves with the number taken.
    pub async fn prefill(&mut self, ids: Uint32Array) -> JsResult<u32> {
        let taken = self.engine.prefill(&ids.to_vec()).await?;
        Ok(u32::try_from(taken).unwrap_or(u32::MAX))
    }

    /// The next `count` tokens; the last one is pending.
    pub async fn decode(
        &mut self,
        count: u32,
        sampling: Option<JsSamplingOptions>,
    ) -> JsResult<Uint32Array> {
        let sampler = sampler(sampling)?;
        let ids = self.engine.decode_sampled(count, &sampler).await?;
        Ok(Uint32Array::from(ids.as_slice()))
    }

    /// Submits a batch and returns at once: call `collect` once for each. At most 3 batches and 64 tokens in flight.
    pub fn begin(&mut self, count: u32, sampling: Option<JsSamplingOptions>) -> JsResult<()> {
        Ok(self.engine.begin(count, &sampler(sampling)?)?)
    }

    /// The tokens of the oldest batch: fewer than were asked for where the last of them is a stop token.
    pub async fn collect(&mut self) -> JsResult<Uint32Array> {
        Ok(Uint32Array::from(self.engine.collect().await?.as_slice()))
    }

    /// Tokens that end a text on the device, 15 at most.
    #[wasm_bindgen(js_name = setStop)]
    pub fn set_stop(&mut self, ids: Uint32Array) -> JsResult<()> {
        Ok(self.engine.set_stop(&ids.to_vec())?)
    }

    /// Batches that were begun and not collected.
    #[wasm_bindgen(getter, js_name = inFlight)]
    pub fn in_flight(&self) -> u32 {
        u32::try_from(self.engine.in_flight()).unwrap_or(u32::MAX)
    }

    /// Logits after the last chosen token.
    pub async fn logits(&mut self) -> JsResult<Float32Array> {
        Ok(Float32Array::from(self.engine.logits().await?.as_slice()))
    }

    /// Puts other logits in the place of those that `logits()` gave; what is no finite number is never chosen.
    #[wasm_bindgen(js_name = setLogits)]
    pub fn set_logits(&mut self, logits: &[f32]) -> JsResult<()> {
        Ok(self.engine.set_logits(logits)?)
    }

    /// Says which tokens the cache holds, for penalties; the last `answered` of them were generated.
    #[wasm_bindgen(js_name = setText)]
    pub fn set_text(&mut self, ids: Uint32Array, answered: u32) -> JsResult<()> {
        Ok(self.engine.set_text(&ids.to_vec(), answered)?)
    }

    /// A copy of the rings on the device.
    #[wasm_bindgen(js_name = copyRings)]
    pub async fn copy_rings(&mut self) -> JsResult<MoaRingCopy> {
        Ok(MoaRingCopy(self.engine.copy_rings().await?))
    }

    /// Puts the rings back as they were when `copy` was made.
    #[wasm_bindgen(js_name = restoreRings)]
    pub fn restore_rings(&mut self, copy: &MoaRingCopy) -> JsResult<()> {
        Ok(self.engine.restore_rings(&copy.0)?)
    }

    /// The used part of a layer's rings, for `restoreLayer`.
    #[wasm_bindgen(js_name = saveLayer)]
    pub async fn save_layer(&mut self, layer: u32) -> JsResult<Uint8Array> {
        Ok(Uint8Array::from(
            self.engine.save_layer(layer as usize).await?.as_slice(),
        ))
    }

    /// Puts a layer back that was saved when the cache's longest was `longest`.
    #[wasm_bindgen(js_name = restoreLayer)]
    pub fn restore_layer(&mut self, layer: u32, longest: u32, bytes: &[u8]) -> JsResult<()> {
        Ok(self.engine.restore_layer(layer as usize, longest, bytes)?)
    }

    /// After every layer: how many tokens the cache holds, and the longest that it has been.
    #[wasm_bindgen(js_name = setPosition)]
    pub fn set_position(&mut self, len: u32, longest: u32) -> JsResult<()> {
        Ok(self.engine.set_position(len, longest)?)
    }

    /// The longest that the cache has been.
    #[wasm_bindgen(getter)]
    pub fn longest(&self) -> u32 {
        self.engine.position().1
    }

    /// Tokens that may be taken back exactly wherever the rings stand.
    #[wasm_bindgen(getter)]
    pub fn slack(&self) -> u32 {
        moa_mask::SLACK
    }

    /// Layers of the model.
    #[wasm_bindgen(getter)]
    pub fn layers(&self) -> u32 {
        u32::try_from(self.engine.setup().masks().layers()).unwrap_or(u32::MAX)
    }

    /// Takes back the last `n` tokens of the cache, and the pending one.
    pub fn rewind(&mut self, n: u32) -> JsResult<()> {
        Ok(self.engine.rewind(n)?)
    }

    /// An empty context; weights stay.
    pub fn reset(&mut self) {
        self.engine.reset();
    }

    /// Tokens in the cache.
    #[wasm_bindgen(getter)]
    #[expect(
        clippy::len_without_is_empty,
        reason = "JavaScript compares a length with 0"
    )]
    pub fn len(&self) -> u32 {
        self.engine.len()
    }

    /// The chosen token that is not in the cache yet.
    #[wasm_bindgen(getter)]
    pub fn pending(&self) -> Option<u32> {
        self.engine.pending()
    }

    /// Tokens that can be taken back exactly.
    #[wasm_bindgen(getter)]
    pub fn rewindable(&self) -> u32 {
        self.engine.rewindable()
    }

    /// The declared context.
    #[wasm_bindgen(getter)]
    pub fn context(&self) -> u32 {
        self.engine.setup().context()
    }

    /// Tokens that one prefill call takes at most.
    #[wasm_bindgen(getter, js_name = prefillChunk)]
    pub fn prefill_chunk(&self) -> u32 {
        self.engine.prefill_chunk()
    }

    /// `{"cache","scratch","total","dense","kvDensity"}`.
    #[wasm_bindgen(js_name = kvBytes)]
    pub fn kv_bytes(&self) -> JsResult<String> {
        json(&self.engine.setup().kv_report()?)
    }

    /// Every byte on the device: `{"weights","kvCache","kvScratch","activations","tables","staging","total"}`.
    #[wasm_bindgen(js_name = gpuBytes)]
    pub fn gpu_bytes(&self) -> JsResult<String> {
        let mut ledger = self.engine.ledger().clone();
        let total = ledger.values().sum();
        ledger.insert("total", total);
        json(&ledger)
    }

    /// The plan in use.
    #[wasm_bindgen(js_name = planJson)]
    pub fn plan_json(&self) -> JsResult<String> {
        Ok(self
            .engine
            .setup()
            .plan()
            .to_json()
            .map_err(|source| EngineError::Plan { source })?)
    }

    /// `{"sink","context","spans":[layer][kv_head]}`: the spans at the declared context.
    #[wasm_bindgen(js_name = spansJson)]
    pub fn spans_json(&self) -> JsResult<String> {
        let setup = self.engine.setup();
        let masks = setup.masks();
        let layer = |layer| {
            masks
                .layer(layer)
                .iter()
                .map(|mask| mask.span().min(setup.context()))
                .collect()
        };
        let spans: Vec<Vec<u32>> = (0..masks.layers()).map(layer).collect();
        json(
            &serde_json::json!({ "sink": setup.plan().sink, "context": setup.context(), "spans": spans }),
        )
    }

    /// `{"name","driver","backend","software"}`.
    #[wasm_bindgen(js_name = adapterJson)]
    pub fn adapter_json(&self) -> JsResult<String> {
        let gpu = self.engine.gpu();
        let info = gpu.adapter();
        json(&serde_json::json!({
            "name": info.name,
            "driver": info.driver,
            "backend": info.backend.to_string(),
            "software": gpu.is_software(),
            "kernels": self.engine.variant().to_string(),
        }))
    }

    /// Dispatches of one decoded token.
    #[wasm_bindgen(getter, js_name = dispatchesPerToken)]
    pub fn dispatches_per_token(&self) -> u32 {
        u32::try_from(self.engine.dispatches_per_token()).unwrap_or(u32::MAX)
    }

    /// Why the device was lost, once it is.
    pub fn lost(&self) -> Option<String> {
        self.engine.gpu().lost()
    }

    /// Gives the device's memory back now; `free()` alone waits for the garbage collector.
    pub fn destroy(&self) {
        self.engine.destroy();
    }
}

impl From<Engine> for MoaEngine {
    fn from(engine: Engine) -> Self {
        Self { engine }
    }
}

/// The weights of an engine, which engines with other plans and contexts may read too.
#[wasm_bindgen]
#[derive(Debug)]
pub struct MoaWeights(Weights);

#[wasm_bindgen]
impl MoaWeights {
    /// Another engine on the same device; `finishLoading` makes it ready. Of the options those about the device do nothing.
    pub async fn engine(
        &self,
        plan_name: String,
        plan_bytes: Option<Vec<u8>>,
        context: u32,
        create_options: Option<JsEngineOptions>,
    ) -> JsResult<MoaEngine> {
        let asked: CreateOptions = options(create_options)?;
        let manifest = self.0.manifest().clone();
        let setup = asked.setup(manifest, &plan_name, plan_bytes.as_deref(), context)?;
        let (variant, _) = asked.variant()?;
        Ok(self.0.engine(setup, asked.engine(variant)).await?.into())
    }

    /// Why the device was lost, once it is.
    pub fn lost(&self) -> Option<String> {
        self.0.gpu().lost()
    }

    /// Gives the weights' memory back now: no engine may use them any more.
    pub fn destroy(&self) {
        self.0.destroy();
    }
}

/// A copy of the rings on the device.
#[wasm_bindgen]
#[derive(Debug)]
pub struct MoaRingCopy(RingCopy);

#[wasm_bindgen]
impl MoaRingCopy {
    /// Tokens that the cache held.
    #[wasm_bindgen(getter)]
    #[expect(
        clippy::len_without_is_empty,
        reason = "JavaScript compares a length with 0"
    )]
    pub fn len(&self) -> u32 {
        self.0.len()
    }

    /// Bytes on the device.
    #[wasm_bindgen(getter)]
    pub fn bytes(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
        let bytes = self.0.bytes() as f64;
        bytes
    }

    /// Gives the memory back now.
    pub fn destroy(&self) {
        self.0.destroy();
    }
}

/// SHA-256 in hex, for files that are checked whole; works outside secure contexts too.
#[wasm_bindgen]
pub fn sha256(bytes: &[u8]) -> String {
    moa_format::sha256_hex(bytes)
}
