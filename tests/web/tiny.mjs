// A bundle of the random model of three layers; with a tokenizer of single bytes if asked, so that the chat calls can be
// tried without a real model. What it says means nothing.

import { execFileSync } from "node:child_process";
import { copyFileSync, mkdirSync, mkdtempSync, readFileSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

import { required } from "./browser.mjs";

const model = fileURLToPath(new URL("../fixtures/tiny-llama", import.meta.url));
const config = JSON.parse(readFileSync(join(model, "config.json"), "utf8"));
export const { vocab_size } = config;

/** A prompt longer than every span of the plan. */
export const ids = Array.from({ length: 100 }, (_, i) => (i * 37 + 11) % vocab_size);
/** Spans shorter than the prompt, different for every head. */
function planOf({ num_hidden_layers: layers, num_key_value_heads: kvHeads }) {
  return { sink: 8, block: 8, spans: Array.from({ length: layers }, (_, l) => Array.from({ length: kvHeads }, (_, h) => 16 + 8 * (l + 2 * h))) };
}

/** GPT-2's table from bytes to visible characters. */
function byteCharacters() {
  const range = (low, high) => Array.from({ length: high - low + 1 }, (_, i) => low + i);
  const visible = new Set([...range(33, 126), ...range(161, 172), ...range(174, 255)]);
  let next = 256;
  return range(0, 255).map((byte) => String.fromCodePoint(visible.has(byte) ? byte : next++));
}

function tokenizer() {
  const special = (id, content) => ({ id, content, single_word: false, lstrip: false, rstrip: false, normalized: false, special: true });
  // The model's own begin and end are 0 and 1.
  const ordinary = Object.fromEntries(byteCharacters().map((character, byte) => [character, byte + 2]));
  const rest = Array.from({ length: vocab_size - 258 }, (_, i) => special(258 + i, i === 0 ? "<|im_start|>" : `<|unused${i}|>`));
  return {
    version: "1.0", truncation: null, padding: null, normalizer: null, post_processor: null,
    added_tokens: [special(0, "<|begin|>"), special(1, "<|im_end|>"), ...rest],
    pre_tokenizer: { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: true },
    decoder: { type: "ByteLevel", add_prefix_space: true, trim_offsets: true, use_regex: true },
    model: { type: "BPE", dropout: null, unk_token: null, continuing_subword_prefix: null, end_of_word_suffix: null, fuse_unk: false, vocab: ordinary, merges: [] },
  };
}

/**
 * Compiles the bundle into a new folder and returns that folder; the bundle lies in its folder `bundle`. With `wide` heads the
 * same weights are half as many of twice the size, in which subgroups serve attention.
 */
export function tinyBundle({ text = false, quant = "f16", wide = false } = {}) {
  const folder = mkdtempSync(join(tmpdir(), "moa-tiny-"));
  const checkpoint = join(folder, "model");
  mkdirSync(checkpoint);
  copyFileSync(join(model, "model.safetensors"), join(checkpoint, "model.safetensors"));
  const { num_attention_heads: heads, num_key_value_heads: kvHeads, head_dim } = config;
  const own = wide ? { ...config, num_attention_heads: heads / 2, num_key_value_heads: kvHeads / 2, head_dim: 2 * head_dim } : config;
  writeFileSync(join(checkpoint, "config.json"), JSON.stringify(own));
  if (text) writeTokenizer(checkpoint);
  writeFileSync(join(folder, "plan.json"), JSON.stringify(planOf(own)));
  compile("build", checkpoint, "--plan", join(folder, "plan.json"), "--quant", quant, "--out", join(folder, "bundle"));
  return folder;
}

/** Runs the compiler. */
export function compile(...args) {
  return execFileSync(required("MOA_COMPILE"), ["--quiet", ...args], { stdio: ["ignore", "pipe", "inherit"], maxBuffer: 1 << 28 });
}

function writeTokenizer(checkpoint) {
  const chat_template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
  writeFileSync(join(checkpoint, "tokenizer.json"), JSON.stringify(tokenizer()));
  writeFileSync(join(checkpoint, "tokenizer_config.json"), JSON.stringify({ chat_template, eos_token: "<|im_end|>" }));
}
