//! The loop around the engine: prefill in chunks, decode in batches, stop tokens, and a question between any two
//! steps whether to go on.

use moa_mask::abi::MAX_STOPS;

use crate::engine::Engine;
use crate::error::Result;
use crate::pace::Pace;
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
    /// Tokens in one submit at most, 1 to 32; fewer where they take long, and at the start.
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

/// Batches in flight: while one is read and reported, the device works on the other.
const FLIGHTS: usize = 2;

/// Generates until a stop token, the length, the end of the context, or until `go_on` says no. `go_on` is asked
/// after every prefill chunk with the tokens taken so far, and after every batch with the tokens it gave.
///
/// When it returns, the cache holds the prompt and exactly the returned tokens, except the last one while it is
/// [`Engine::pending`]: what the device had done beyond them is taken back. After an abort in the prompt it holds what
/// had been taken in by then.
pub async fn generate(
    engine: &mut Engine,
    request: &Request<'_>,
    sampler: &Sampler,
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
    // The device stops by itself where it can; otherwise what it did too much is taken back.
    let on_device = request.stop.len() <= MAX_STOPS as usize;
    engine.set_stop(if on_device { request.stop } else { &[] })?;
    let mut pace = Pace::new(request.batch);
    let mut begun = 0;
    loop {
        while engine.in_flight() < FLIGHTS && begun < request.max_tokens {
            // A token can be chosen without room for itself, but not without room for the one before it.
            let known = engine.pending().is_none() && engine.in_flight() == 0;
            let room = engine.setup().context() - engine.len() + u32::from(known);
            let count = pace.batch().min(request.max_tokens - begun).min(room);
            if count == 0 {
                break;
            }
            engine.begin(count, sampler)?;
            begun += count;
        }
        if engine.in_flight() == 0 {
            let reason = if begun < request.max_tokens {
                StopReason::Context
            } else {
                StopReason::Length
            };
            return ended(tokens, reason);
        }
        let ids = engine.collect().await?;
        pace.landed();
        let stop = ids.iter().position(|id| request.stop.contains(id));
        let kept = &ids[..stop.unwrap_or(ids.len())];
        tokens.extend_from_slice(kept);
        let wanted = go_on(Progress::Decoded(kept));
        if stop.is_none() && wanted {
            continue;
        }
        let mut extra = ids.len() - kept.len();
        while engine.in_flight() > 0 {
            extra += engine.collect().await?.len();
        }
        // Of the tokens chosen beyond those kept all but the last, pending one are in the cache.
        if extra > 0 {
            engine.rewind(u32::try_from(extra - 1).unwrap_or(u32::MAX))?;
        }
        let reason = if stop.is_some() {
            StopReason::Stop
        } else {
            StopReason::Aborted
        };
        return ended(tokens, reason);
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
