/** The bytes that each token of a tokenizer stands for: of byte-level vocabularies, and of those that write "▁" for a space. */

import type { TokenTable } from "./grammar.js";

/** What is read of a tokenizer.json. */
export interface TokenizerModel {
  model: { vocab: Record<string, number> | readonly (readonly [string, number])[] };
  added_tokens?: readonly { id: number; content: string; special: boolean }[];
  decoder?: unknown;
}

/** The table of a tokenizer. Special tokens have no bytes: no text holds them. */
export function tokenTable(tokenizer: TokenizerModel): TokenTable {
  const { vocab } = tokenizer.model;
  const entries: (readonly [string, number])[] = Array.isArray(vocab)
    ? vocab.map(([token], id) => [token as string, id] as const)
    : Object.entries(vocab as Record<string, number>);
  const added = tokenizer.added_tokens ?? [];
  let size = 0;
  for (const [, id] of entries) size = Math.max(size, id + 1);
  for (const { id } of added) size = Math.max(size, id + 1);
  const byteLevel = JSON.stringify(tokenizer.decoder ?? null).includes('"ByteLevel"');
  const encoder = new TextEncoder();
  const bytesOf = byteLevel ? byteLevelBytes() : spacedBytes(encoder);
  const words: Uint8Array[] = Array.from({ length: size }, () => new Uint8Array());
  for (const [token, id] of entries) words[id] = bytesOf(token);
  for (const { id, content, special } of added) words[id] = special ? new Uint8Array() : encoder.encode(content);
  const lengths = Uint32Array.from(words, ({ length }) => length);
  const bytes = new Uint8Array(lengths.reduce((sum, length) => sum + length, 0));
  let at = 0;
  for (const word of words) {
    bytes.set(word, at);
    at += word.length;
  }
  return { bytes, lengths };
}

/** GPT-2's characters for bytes: printable ones stand for themselves, the others follow from 256 on. */
function byteLevelBytes(): (token: string) => Uint8Array {
  const bytes = new Map<string, number>();
  let next = 256;
  for (let byte = 0; byte < 256; byte++) {
    const visible = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    bytes.set(String.fromCodePoint(visible ? byte : next++), byte);
  }
  return (token) => Uint8Array.from([...token].map((character) => bytes.get(character) ?? 0x3f));
}

/** Of SentencePiece's kind: "▁" is a space, "<0x0A>" a byte. */
function spacedBytes(encoder: TextEncoder): (token: string) => Uint8Array {
  return (token) => {
    const byte = /^<0x([0-9A-F]{2})>$/.exec(token)?.[1];
    return byte === undefined ? encoder.encode(token.replaceAll("▁", " ")) : Uint8Array.of(Number.parseInt(byte, 16));
  };
}
