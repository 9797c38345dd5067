// Prompts of exact lengths from a real book, as ids and as text. Every prompt begins elsewhere, so that no engine's
// prefix cache answers for it.

import { readFileSync } from "node:fs";

import { Tokenizer } from "@huggingface/tokenizers";

import { chapters } from "../chapters.js";

/** Long enough for the prompts of a run. */
const CHAPTERS = 40;

/** The book, and text, in ids of the bundle's tokenizer. */
export function reader(bundle) {
  const json = (name) => JSON.parse(readFileSync(`${bundle}/${name}`, "utf8"));
  const tokenizer = new Tokenizer(json("tokenizer.json"), json("tokenizer_config.json"));
  const encode = (text) => tokenizer.encode(text, { add_special_tokens: false }).ids;
  const book = encode(chapters(CHAPTERS).map(({ text }) => `${text}\n\n`).join(""));
  let next = 0;
  /** The next `length` tokens of the book, from its start again where it ends. */
  const read = (length) => {
    if (next + length > book.length) next = 0;
    const ids = book.slice(next, next + length);
    next += length + 1;
    return { ids, text: tokenizer.decode(ids, { skip_special_tokens: false, clean_up_tokenization_spaces: false }) };
  };
  return { read, encode };
}
