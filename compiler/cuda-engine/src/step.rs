//! The layers, for a packed chunk and for one token of every request: the same products around two kinds of attention.

use half::bf16;
use moa_kernels::{Buffer, Chunk, ChunkPart, Gpu, KvBuffers, MatmulShape, QkvTables, Value};

use crate::Result;
use crate::engine::{Activations, Engine, Kernels};
use crate::model::{Layer, Matrix, Model};

impl Kernels {
    /// `x W^T`, or added to what `y` holds.
    fn product<O: Value>(
        &self,
        gpu: &Gpu,
        rows: usize,
        x: &Buffer<bf16>,
        matrix: &Matrix,
        y: &mut Buffer<O>,
        add: bool,
    ) -> Result<()> {
        let shape = MatmulShape {
            rows,
            inputs: matrix.inputs,
            outputs: matrix.outputs,
        };
        self.matmul
            .forward(gpu, shape, x, &matrix.weight, None, y, add)?;
        Ok(())
    }

    /// From the residual stream to projections.
    fn project(&self, model: &Model, layer: &Layer, at: &mut Activations) -> Result<()> {
        let gpu = &model.gpu;
        let norm = &layer.attention_norm;
        self.rows
            .rms_norm(gpu, &at.x, norm, eps(model), &mut at.normed)?;
        self.product(gpu, at.rows, &at.normed, &layer.qkv, &mut at.qkv, false)
    }

    /// From what attention gave to the end of the layer.
    fn finish(&self, model: &Model, layer: &Layer, at: &mut Activations) -> Result<()> {
        let gpu = &model.gpu;
        self.product(gpu, at.rows, &at.attended, &layer.o, &mut at.x, true)?;
        self.rows
            .rms_norm(gpu, &at.x, &layer.ffn_norm, eps(model), &mut at.normed)?;
        self.product(gpu, at.rows, &at.normed, &layer.gate, &mut at.gate, false)?;
        self.product(gpu, at.rows, &at.normed, &layer.up, &mut at.up, false)?;
        self.rows.swiglu(gpu, &at.gate, &at.up, &mut at.activated)?;
        self.product(gpu, at.rows, &at.activated, &layer.down, &mut at.x, true)
    }

    /// Logits of final rows of the residual stream.
    pub(crate) fn head(
        &self,
        model: &Model,
        x: &Buffer<f32>,
        normed: &mut Buffer<bf16>,
        logits: &mut Buffer<f32>,
    ) -> Result<()> {
        let gpu = &model.gpu;
        let rows = x.len() / model.config.hidden_dim as usize;
        self.rows
            .rms_norm(gpu, x, &model.final_norm, eps(model), normed)?;
        self.product(gpu, rows, normed, model.lm_head(), logits, false)
    }
}

fn eps(model: &Model) -> f32 {
    #[expect(clippy::cast_possible_truncation, reason = "added to an f32 mean")]
    let eps = model.config.rms_norm_eps as f32;
    eps
}

fn softmax_scale(model: &Model) -> f32 {
    #[expect(clippy::cast_precision_loss, reason = "at most 128")]
    let head_dim = model.config.head_dim as f32;
    1.0 / head_dim.sqrt()
}

impl Engine {
    /// Runs a chunk through all layers and into the caches; gives the residual stream, row by row.
    pub(crate) fn chunk(&mut self, parts: &[ChunkPart], ids: &[u32]) -> Result<Buffer<f32>> {
        let Self {
            model,
            options,
            kernels,
            layers,
            angles,
            scratch,
            ..
        } = self;
        let (gpu, scale) = (&model.gpu, softmax_scale(model));
        let chunk = Chunk::new(gpu, model.shape, options.batch, parts)?;
        let mut at = Activations::new(model, ids.len())?;
        let hidden = model.config.hidden_dim as usize;
        let embedding = &model.embedding.weight;
        kernels
            .rows
            .gather_widen(gpu, embedding, hidden, &gpu.upload(ids)?, &mut at.x)?;
        for (layer, cache) in model.layers.iter().zip(layers) {
            kernels.project(model, layer, &mut at)?;
            let tables = QkvTables {
                angles,
                bias: layer.bias.as_ref(),
            };
            let fresh = (&mut scratch.k, &mut scratch.v);
            kernels
                .qkv
                .split(gpu, &chunk, &at.qkv, tables, &mut at.q, fresh)?;
            if let Some((k, v)) = &mut scratch.widened
                && parts.iter().any(|part| part.start > 0)
            {
                kernels.qkv.widen(gpu, &cache.slots, &cache.kv, (k, v))?;
            }
            let fresh = (&scratch.k, &scratch.v);
            let cached = match (&cache.kv, &scratch.widened) {
                (_, Some((k, v))) | (KvBuffers::Sixteen { k, v }, None) => (k, v),
                // Caches of bytes come with room to widen them; if they did not, the launch would refuse the short buffers.
                (KvBuffers::Int8 { .. }, None) => fresh,
            };
            kernels.prefill.run(
                gpu,
                &cache.slots,
                &chunk,
                &at.q,
                fresh,
                cached,
                scale,
                &mut at.attended,
            )?;
            kernels
                .qkv
                .commit(gpu, &cache.slots, &chunk, fresh, &mut cache.kv)?;
            kernels.finish(model, layer, &mut at)?;
        }
        Ok(at.x)
    }

    /// Runs the next token of every request through all layers, up to logits. Nothing is allocated.
    pub(crate) fn token(&mut self) -> Result<()> {
        let Self {
            model,
            kernels,
            layers,
            angles,
            workspace,
            step,
            logits,
            state,
            ..
        } = self;
        let (gpu, scale) = (&model.gpu, softmax_scale(model));
        let hidden = model.config.hidden_dim as usize;
        let embedding = &model.embedding.weight;
        kernels
            .rows
            .gather_widen(gpu, embedding, hidden, &state.ids, &mut step.x)?;
        for (layer, cache) in model.layers.iter().zip(layers) {
            kernels.project(model, layer, step)?;
            let tables = QkvTables {
                angles,
                bias: layer.bias.as_ref(),
            };
            kernels.qkv.append(
                gpu,
                &cache.slots,
                &step.qkv,
                tables,
                &state.lens,
                &mut step.q,
                &mut cache.kv,
            )?;
            cache.decode.run(
                gpu,
                &cache.slots,
                workspace,
                &step.q,
                &cache.kv,
                &state.lens,
                scale,
                &mut step.attended,
            )?;
            kernels.finish(model, layer, step)?;
        }
        kernels.head(model, &step.x, &mut step.normed, logits)
    }

    /// One greedy token of every request: the first time launch by launch, then as the graph that was recorded after it.
    ///
    /// # Errors
    /// The device's.
    pub fn advance(&mut self) -> Result<()> {
        let model = self.model.clone();
        if let Some(graph) = &self.graph {
            model.gpu.replay(graph)?;
            return Ok(());
        }
        let step = |engine: &mut Self| -> Result<()> {
            engine.token()?;
            let gpu = &engine.model.gpu;
            let (logits, state) = (&engine.logits, &mut engine.state);
            engine.kernels.argmax.step(gpu, logits, state)?;
            Ok(())
        };
        step(self)?;
        // What fails inside is this engine's error, not the recorder's.
        let mut failed = None;
        let graph = model.gpu.record(|| {
            failed = step(self).err();
            Ok(())
        });
        if let Some(error) = failed {
            return Err(error);
        }
        self.graph = Some(graph?);
        Ok(())
    }
}
