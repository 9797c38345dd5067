//! Writing on: a prompt enters a session, tokens come out one by one.

use std::ops::ControlFlow;

use crate::observer::{Observer, check};
use crate::{Device, Result, Sampler, Session};

/// When to stop.
#[derive(Debug, Clone, Copy)]
pub struct GenerateOptions<'a> {
    /// Tokens to write at most.
    pub max_tokens: usize,
    /// Tokens that end the text; they are not part of it.
    pub stop: &'a [u32],
}

/// Why the text ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum StopReason {
    /// A stop token came.
    StopToken,
    /// There are as many tokens as were asked for.
    MaxTokens,
    /// The session's context is full.
    ContextFull,
    /// The callback had enough.
    Callback,
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generated {
    /// The tokens, stop token excluded.
    pub tokens: Vec<u32>,
    /// Why there are no more.
    pub reason: StopReason,
}

/// Appends `prompt` to the session and writes on, telling `on_token` every token as it is chosen.
///
/// The last token written is not yet part of the session: a following prompt should begin with it.
pub fn generate<D: Device>(
    session: &mut Session<'_, D>,
    prompt: &[u32],
    options: &GenerateOptions<'_>,
    sampler: &mut Sampler,
    observer: &dyn Observer,
    on_token: &mut dyn FnMut(u32) -> ControlFlow<()>,
) -> Result<Generated> {
    let mut logits = session.prefill_watched(prompt, observer)?;
    let mut tokens = Vec::new();
    let reason = loop {
        if tokens.len() == options.max_tokens {
            break StopReason::MaxTokens;
        }
        let id = sampler.sample(&logits);
        if options.stop.contains(&id) {
            break StopReason::StopToken;
        }
        tokens.push(id);
        if on_token(id).is_break() {
            break StopReason::Callback;
        }
        if tokens.len() == options.max_tokens {
            break StopReason::MaxTokens;
        }
        if session.len() == session.context() {
            break StopReason::ContextFull;
        }
        check(observer)?;
        logits = session.decode(id)?;
    };
    Ok(Generated { tokens, reason })
}
