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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random_model::model;
    use crate::{LmError, SamplerOptions};

    #[test]
    fn every_way_to_end() {
        let lm = model();
        let mut greedy = Sampler::new(SamplerOptions::GREEDY).unwrap();
        let mut write = |context: u32, max_tokens: usize, stop: &[u32], break_after: usize| {
            let mut session = lm.session(None, context).unwrap();
            let mut seen = Vec::new();
            let options = GenerateOptions { max_tokens, stop };
            let written = generate(
                &mut session,
                &[1, 2, 3],
                &options,
                &mut greedy,
                &(),
                &mut |id| {
                    seen.push(id);
                    if seen.len() == break_after {
                        ControlFlow::Break(())
                    } else {
                        ControlFlow::Continue(())
                    }
                },
            )
            .unwrap();
            assert_eq!(written.tokens, seen);
            (written.tokens, written.reason, session.len())
        };
        let (all, reason, len) = write(100, 12, &[], 0);
        assert_eq!(
            (all.len(), reason, len),
            (12, StopReason::MaxTokens, 3 + 11)
        );
        let first = all.iter().position(|id| *id == all[5]).unwrap();
        let (tokens, reason, _) = write(100, 12, &all[5..6], 0);
        assert_eq!(
            (&tokens[..], reason),
            (&all[..first], StopReason::StopToken)
        );
        let (tokens, reason, _) = write(100, 12, &[], 4);
        assert_eq!((&tokens[..], reason), (&all[..4], StopReason::Callback));
        let (tokens, reason, len) = write(8, 12, &[], 0);
        assert_eq!(
            (&tokens[..], reason, len),
            (&all[..6], StopReason::ContextFull, 8)
        );
        assert!(write(100, 0, &[], 0).0.is_empty());
    }

    #[test]
    fn a_cancelled_prompt_ends_with_an_error() {
        let lm = model();
        let mut session = lm.session(None, 10).unwrap();
        let stop = std::sync::atomic::AtomicBool::new(true);
        let mut greedy = Sampler::new(SamplerOptions::GREEDY).unwrap();
        let options = GenerateOptions {
            max_tokens: 1,
            stop: &[],
        };
        let stopped = generate(
            &mut session,
            &[1],
            &options,
            &mut greedy,
            &stop,
            &mut |_| ControlFlow::Continue(()),
        );
        assert!(matches!(stopped, Err(LmError::Cancelled)));
        session.prefill(&[1]).unwrap();
    }
}
