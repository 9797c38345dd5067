//! One set of weights for several engines on one device: the same model under other plans and contexts. Each engine has
//! rings and scratch of its own. What becomes of a lost device is the caller's business.

use std::sync::Arc;

use moa_format::Manifest;

use crate::create::EngineOptions;
use crate::engine::Engine;
use crate::error::{EngineError, Result};
use crate::gpu::Gpu;
use crate::setup::Setup;
use crate::weights::WeightBuffers;

/// The weights of an engine that has them all, and the device that they lie on.
#[derive(Debug, Clone)]
pub struct Weights {
    gpu: Gpu,
    manifest: Manifest,
    buffers: Arc<WeightBuffers>,
}

impl Engine {
    /// This engine's weights, for other engines to read; an error while chunks are missing.
    pub fn weights(&self) -> Result<Weights> {
        self.weights.check_complete()?;
        Ok(Weights {
            gpu: self.gpu.clone(),
            manifest: self.setup.manifest().clone(),
            buffers: Arc::clone(&self.weights),
        })
    }
}

impl Weights {
    /// What the weights belong to.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The device.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// Another engine with these weights; [`Engine::finish_loading`] makes it ready. The setup must be one of this model,
    /// and no larger than the device was asked for.
    pub async fn engine(&self, setup: Setup, options: EngineOptions) -> Result<Engine> {
        let (own, other) = (&self.manifest, setup.manifest());
        if (&own.model, &own.weights) != (&other.model, &other.weights) {
            return Err(EngineError::BadArgument {
                what: "the setup",
                got: format!("one of {}", other.name),
                expected: "one of the model that the weights belong to",
            });
        }
        self.gpu.check_needs(setup.needs())?;
        Engine::build(
            self.gpu.clone(),
            setup,
            options,
            Some(Arc::clone(&self.buffers)),
        )
        .await
    }

    /// Gives the weights' memory back without waiting for the last reference to go: no engine may use them any more.
    pub fn destroy(&self) {
        self.buffers.destroy();
    }
}
