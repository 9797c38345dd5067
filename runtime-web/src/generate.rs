//! The loop around the engine: prefill in chunks, decode in batches, stop tokens, and a question between any two
//! steps whether to go on.

use crate::buffers::MAX_DECODE_BATCH;
use crate::engine::Engine;
use crate::error::Result;
use crate::sampler::Sampler;

/// What is to be generated.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    /// Tokens that come first; they follow what is in the cache already.
    pub prompt: &'a [u32],
    /// Tokens to generate at most.
    pub max_tokens: u32,
    /// Tokens that end the text; they are not returned.
    pub stop: &'a [u32],
    /// Greedy tokens in one submit, 1 to [`MAX_DECODE_BATCH`].
    pub batch: u32,
}

/// Why generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum StopReason {
    /// As many tokens as asked for.
    Length,
    /// A stop token.
    Stop,
    /// The declared context is full.
    Context,
    /// The caller said so.
    Aborted,
}

/// What was generated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generated {
    /// Generated tokens, the stop token left out.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub reason: StopReason,
}

/// Generates until a stop token, the length, the end of the context, or until `go_on` says no. `go_on` is asked
/// after every prefill chunk with the tokens taken so far, and after every batch with the tokens it gave.
///
/// When it returns, the cache holds the prompt and exactly the returned tokens, except the last one while it is
/// [`Engine::pending`]; after an abort it holds what had been taken in by then.
pub async fn generate(
    engine: &mut Engine,
    request: &Request<'_>,
    sampler: &mut Sampler,
    mut go_on: impl FnMut(Progress<'_>) -> bool,
) -> Result<Generated> {
    let mut tokens = Vec::new();
    let ended = |tokens, reason| Ok(Generated { tokens, reason });
    let mut taken = 0;
    while taken < request.prompt.len() {
        taken += engine.prefill(&request.prompt[taken..]).await?;
        if !go_on(Progress::Prefilled {
            taken,
            of: request.prompt.len(),
        }) {
            return ended(tokens, StopReason::Aborted);
        }
    }
    loop {
        let left = request
            .max_tokens
            .saturating_sub(u32::try_from(tokens.len()).unwrap_or(u32::MAX));
        if left == 0 {
            return ended(tokens, StopReason::Length);
        }
        // A token can be chosen without room for itself, but not without room for the pending one before it.
        let room = engine.setup().context() - engine.len();
        if room == 0 && engine.pending().is_some() {
            return ended(tokens, StopReason::Context);
        }
        let room = room + u32::from(engine.pending().is_none());
        let ids = if sampler.is_greedy() {
            let batch = request.batch.clamp(1, MAX_DECODE_BATCH);
            engine.decode(batch.min(left).min(room)).await?
        } else {
            vec![engine.sample(sampler).await?]
        };
        let stop = ids.iter().position(|id| request.stop.contains(id));
        let kept = &ids[..stop.unwrap_or(ids.len())];
        tokens.extend_from_slice(kept);
        let wanted = go_on(Progress::Decoded(kept));
        if let Some(at) = stop {
            // The stop token and what followed it: all but the last, pending one are in the cache.
            let extra = ids.len() - 1 - at;
            engine.rewind(u32::try_from(extra).unwrap_or(u32::MAX))?;
            return ended(tokens, StopReason::Stop);
        }
        if !wanted {
            return ended(tokens, StopReason::Aborted);
        }
    }
}

/// What [`generate`] reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress<'a> {
    /// Tokens of the prompt that are in the cache.
    Prefilled {
        /// So many.
        taken: usize,
        /// Of so many.
        of: usize,
    },
    /// Tokens that were just generated.
    Decoded(&'a [u32]),
}
