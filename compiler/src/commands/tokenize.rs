//! `tokenize`: what this program's tokenizer makes of strings, so that a browser's can be compared with it.

use std::io::Read as _;

use moa_model::Message;
use serde_json::json;

use crate::cli::Tokenize;
use crate::hint::Told;
use crate::printer::Printer;
use crate::source::Source;

pub(crate) fn run(args: &Tokenize, printer: &Printer) -> anyhow::Result<()> {
    let source = Source::open(&args.model)?;
    let Some(tokenizer) = source.tokenizer() else {
        return Err(Told::new(
            "this model has no tokenizer",
            "put its tokenizer.json beside the weights",
        )
        .into());
    };
    let mut text = String::new();
    std::io::stdin().lock().read_to_string(&mut text)?;
    let strings: Vec<String> = serde_json::from_str(&text).map_err(|error| {
        anyhow::Error::new(error).context(Told::new(
            "standard input holds no strings",
            "pass a JSON array of strings",
        ))
    })?;
    let mut ids = Vec::with_capacity(strings.len());
    let mut decoded = Vec::with_capacity(strings.len());
    let mut rendered = Vec::with_capacity(strings.len());
    for string in &strings {
        let text = if args.chat {
            tokenizer.apply_chat_template(&[Message::new("user", string.clone())], true)?
        } else {
            string.clone()
        };
        let encoded = tokenizer.encode(&text, !args.chat)?;
        decoded.push(tokenizer.decode(&encoded, true)?);
        ids.push(encoded);
        rendered.push(text);
    }
    let document =
        json!({"schema_version": 1, "ids": ids, "decoded": decoded, "rendered": rendered});
    printer.result(&document, serde_json::to_string(&ids)?)?;
    Ok(())
}
