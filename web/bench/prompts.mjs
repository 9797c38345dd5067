// Prompts of exact lengths from a real book, as ids and as text. Every prompt begins elsewhere, so that no engine's
// prefix cache answers for it. A bundle of random weights has no tokenizer: its book is ids.

import { existsSync, readFileSync } from "node:fs";

import { Tokenizer } from "@huggingface/tokenizers";

import { chapters } from "../chapters.js";

/** Long enough for the prompts of a run. */
const CHAPTERS = 40;

/** Ids of a book where there is no tokenizer. */
const NUMBERS = 1 << 18;

/** The book, and text, in ids of the bundle's tokenizer. */
export function reader(bundle) {
  const { encode, decode, book } = existsSync(`${bundle}/tokenizer.json`) ? words(bundle) : numbers(bundle);
  let next = 0;
  /** The next `length` tokens of the book, from its start again where it ends. */
  const read = (length) => {
    if (next + length > book.length) next = 0;
    const ids = book.slice(next, next + length);
    next += length + 1;
    return { ids, text: decode(ids) };
  };
  return { read, encode };
}

const json = (bundle, name) => JSON.parse(readFileSync(`${bundle}/${name}`, "utf8"));

function words(bundle) {
  const tokenizer = new Tokenizer(json(bundle, "tokenizer.json"), json(bundle, "tokenizer_config.json"));
  const encode = (text) => tokenizer.encode(text, { add_special_tokens: false }).ids;
  return {
    encode,
    decode: (ids) => tokenizer.decode(ids, { skip_special_tokens: false, clean_up_tokenization_spaces: false }),
    book: encode(chapters(CHAPTERS).map(({ text }) => `${text}\n\n`).join("")),
  };
}

function numbers(bundle) {
  const vocab = json(bundle, "manifest.json").model.vocab_size;
  return { encode: () => [], decode: () => "", book: Array.from({ length: NUMBERS }, (_, at) => (at * 7919) % vocab) };
}
