//! `generate`: text from a model or a bundle, streamed as it comes.

use std::ops::ControlFlow;
use std::time::Instant;

use moa_format::Plan;
use moa_lm::{Device, Lm, Sampler, SamplerOptions};
use moa_mask::ModelMasks;
use moa_model::{ChatTokenizer, Message};
use serde_json::json;

use crate::cli::Generate;
use crate::device::{self, on};
use crate::hint::Told;
use crate::ids;
use crate::interrupt;
use crate::plans;
use crate::printer::Printer;
use crate::source::Source;

pub(crate) fn run(args: &Generate, printer: &Printer) -> anyhow::Result<()> {
    let place = device::choose(args.device, printer)?;
    let source = Source::open(&args.model)?;
    let prompt = prompt(args, &source)?;
    let plan = plans::resolve(&source, args.plan.as_deref())?;
    let wanted = prompt.len().saturating_add(args.max_tokens);
    let context = match args.context {
        Some(context) => context,
        None => u32::try_from(wanted).unwrap_or(u32::MAX),
    };
    if prompt.len() >= context as usize {
        return Err(Told::new(
            format!(
                "the prompt has {} tokens, and the context is {context}",
                prompt.len()
            ),
            "raise --context, or shorten the prompt",
        )
        .into());
    }
    if context > source.config().max_context {
        printer.say(format!(
            "warning: the model was trained for {} positions, the context is {context}",
            source.config().max_context
        ));
    }
    let masks = plans::masks(plan.as_ref(), source.config(), context)?;
    let model = device::load(&place, &source, printer)?;
    let request = Request {
        args,
        source: &source,
        prompt: &prompt,
        plan: plan.as_ref(),
        masks: &masks,
        context,
    };
    on!(&model, lm => write(lm, &request, printer))
}

/// What is to be written on.
struct Request<'a> {
    args: &'a Generate,
    source: &'a Source,
    prompt: &'a [u32],
    plan: Option<&'a Plan>,
    masks: &'a ModelMasks,
    context: u32,
}

/// Writes on, printing as tokens come.
fn write<D: Device>(lm: &Lm<D>, request: &Request<'_>, printer: &Printer) -> anyhow::Result<()> {
    let Request {
        args,
        source,
        prompt,
        plan,
        masks,
        context,
    } = *request;
    let mut sampler = Sampler::new(SamplerOptions {
        temperature: args.temperature,
        top_k: args.top_k,
        top_p: args.top_p,
        min_p: args.min_p,
        seed: args.seed,
    })?;
    let mut session = lm.session(Some(masks), context)?;
    let cancel = interrupt::flag();
    let begun = Instant::now();
    let mut logits = session.prefill_watched(prompt, cancel)?;
    let prefill_secs = begun.elapsed().as_secs_f64();
    let begun = Instant::now();
    let mut tokens: Vec<u32> = Vec::new();
    let mut printed = 0;
    let limit = args.max_tokens.min(context as usize - prompt.len());
    let eos = &source.config().eos;
    let mut finish = "length";
    while tokens.len() < limit {
        let id = sampler.sample(&logits);
        tokens.push(id);
        if eos.contains(&id) {
            finish = "stop";
            break;
        }
        if let Some(tokenizer) = source.tokenizer() {
            printed = stream(tokenizer, &tokens, printed, printer)?;
        }
        if let ControlFlow::Break(()) = interrupt::check(cancel) {
            finish = "abort";
            break;
        }
        if tokens.len() < limit {
            logits = session.decode(id)?;
        }
    }
    let decode_secs = begun.elapsed().as_secs_f64();
    let text = source
        .tokenizer()
        .map(|tokenizer| tokenizer.decode(&tokens, true))
        .transpose()?;
    let document = json!({
        "schema_version": 1,
        "tokens": tokens,
        "text": text,
        "finish_reason": finish,
        "plan": plan.map_or(plans::DENSE, |plan| plan.name.as_str()),
        "context": context,
        "prompt_tokens": prompt.len(),
        "prefill_secs": prefill_secs,
        "decode_secs": decode_secs,
    });
    let rest = match &text {
        Some(text) => text.get(printed..).unwrap_or_default().to_owned() + "\n",
        None => serde_json::to_string(&tokens)? + "\n",
    };
    printer.stream(&rest)?;
    printer.result(&document, "")?;
    Ok(())
}

/// Prints what has become certain: a token may end in the middle of a character.
fn stream(
    tokenizer: &ChatTokenizer,
    tokens: &[u32],
    printed: usize,
    printer: &Printer,
) -> anyhow::Result<usize> {
    let text = tokenizer.decode(tokens, true)?;
    let certain = text.trim_end_matches('\u{FFFD}').len();
    match text.get(printed..certain) {
        Some(new) if !new.is_empty() => {
            printer.stream(new)?;
            Ok(certain)
        }
        _ => Ok(printed),
    }
}

fn prompt(args: &Generate, source: &Source) -> anyhow::Result<Vec<u32>> {
    if let Some(path) = &args.prompt.ids {
        return ids::read(path, source.config());
    }
    let text = args.prompt.prompt.as_deref().unwrap_or_default();
    let Some(tokenizer) = source.tokenizer() else {
        return Err(Told::new("this model has no tokenizer", "pass token ids with --ids").into());
    };
    let ids = if args.raw || !tokenizer.has_chat_template() {
        tokenizer.encode(text, true)?
    } else {
        let message = Message::new("user", text);
        tokenizer.encode(&tokenizer.apply_chat_template(&[message], true)?, false)?
    };
    ids::check(&ids, source.config())?;
    Ok(ids)
}
