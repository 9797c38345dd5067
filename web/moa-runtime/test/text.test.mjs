import assert from "node:assert/strict";
import { test } from "node:test";

import { ChatCompletions } from "../dist/chat.js";
import { Completions } from "../dist/completions.js";
import { MoaError } from "../dist/errors.js";
import { StreamDecoder, TextCodec } from "../dist/text.js";

// GPT-2's table from bytes to visible characters, so that a vocabulary of single bytes can be written down.
function byteCharacters() {
  const visible = [...range(33, 126), ...range(161, 172), ...range(174, 255)];
  const table = new Map(visible.map((byte) => [byte, String.fromCodePoint(byte)]));
  let next = 256;
  for (let byte = 0; byte < 256; byte++) if (!table.has(byte)) table.set(byte, String.fromCodePoint(next++));
  return table;
}
const range = (low, high) => Array.from({ length: high - low + 1 }, (_, i) => low + i);

const vocab = Object.fromEntries([...byteCharacters()].map(([byte, character]) => [character, byte]));
const special = (id, content) => ({ id, content, single_word: false, lstrip: false, rstrip: false, normalized: false, special: true });
const tokenizerJson = JSON.stringify({
  version: "1.0", truncation: null, padding: null, normalizer: null, post_processor: null,
  added_tokens: [special(256, "<|im_start|>"), special(257, "<|im_end|>")],
  pre_tokenizer: { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: true },
  decoder: { type: "ByteLevel", add_prefix_space: true, trim_offsets: true, use_regex: true },
  model: { type: "BPE", dropout: null, unk_token: null, continuing_subword_prefix: null, end_of_word_suffix: null, fuse_unk: false, vocab, merges: [] },
});
const template =
  "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}" +
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
const codec = new TextCodec(tokenizerJson, JSON.stringify({ chat_template: template, eos_token: "<|im_end|>" }));
const bytes = (text) => [...new TextEncoder().encode(text)];

test("text to ids and back, special tokens whole", () => {
  const ids = codec.encode("<|im_start|>héllo 🙂", false);
  assert.deepEqual(ids, [256, ...bytes("héllo 🙂")]);
  assert.equal(codec.decode(ids, true), "héllo 🙂");
  assert.equal(codec.decode(ids, false), "<|im_start|>héllo 🙂");
  assert.deepEqual(codec.encode("", false), []);
  assert.equal(codec.decode([], true), "");
});

test("the template ends where the answer begins", () => {
  assert.equal(codec.render([{ role: "user", content: "Hi" }]), "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
});

test("a tokenizer or template that cannot be read is a typed error", () => {
  for (const [tokenizer, config] of [["{", "{}"], [tokenizerJson, "["], [tokenizerJson, JSON.stringify({ chat_template: "{% for %}" })]]) {
    assert.throws(() => new TextCodec(tokenizer, config), (error) => error instanceof MoaError && error.code === "no-tokenizer");
  }
  assert.throws(() => new TextCodec(tokenizerJson, "{}").render([{ role: "user", content: "" }]), { code: "no-tokenizer" });
});

test("a stream never gives half a character, and all pieces make the text", () => {
  const text = "naïve 🙂🙃 日本語 end";
  for (const size of [1, 2, 3, 5, 100]) {
    const decoder = new StreamDecoder(codec);
    const ids = bytes(text);
    let pieces = "";
    for (let at = 0; at < ids.length; at += size) {
      const piece = decoder.push(ids.slice(at, at + size));
      assert.ok(!piece.includes("\u{fffd}"));
      pieces += piece;
    }
    assert.equal(pieces + decoder.flush(), text);
  }
  const cut = new StreamDecoder(codec);
  assert.equal(cut.push(bytes("🙂").slice(0, 2)), "");
  assert.equal(cut.flush(), "\u{fffd}");
});

/** A backend that answers with fixed batches of ids. */
function completions(batches, reason = "stop") {
  const seen = { requests: [], left: false };
  const backend = {
    codec, modelName: "tiny", stopIds: [257],
    async *generate(request, signal) {
      seen.requests.push({ request, signal });
      try {
        yield { kind: "prefilled", done: 4, total: 4 };
        for (const ids of batches) yield { kind: "tokens", ids, ...(request.logprobs === undefined ? {} : { logprobs: ids.map((id) => ({ id, logprob: -0.5, top: [{ id, logprob: -0.5 }] })) }) };
        const completionTokens = batches.flat().length;
        yield { kind: "finished", reason, stats: { promptTokens: request.ids.length, cachedTokens: 3, completionTokens, prefillMs: 1, decodeMs: 10, turnSnapshotBytes: 0, recoveries: 0 } };
        seen.finished = true;
      } finally {
        seen.left = true;
      }
    },
  };
  return { chat: new ChatCompletions(backend), raw: new Completions(backend), seen };
}
const messages = [{ role: "user", content: "Hi" }];

test("a whole answer in OpenAI's shape", async () => {
  const { chat, seen } = completions([bytes("He"), [...bytes("llo"), 257]]);
  const progress = [];
  const answer = await chat.create({ messages, temperature: 0, max_tokens: 9, seed: 5 }, { onProgress: (p) => progress.push(p) });
  assert.deepEqual(progress, [
    { phase: "prefill", done: 4, total: 4 }, { phase: "decode", done: 2, total: 9 }, { phase: "decode", done: 6, total: 9 },
  ]);
  assert.equal(answer.object, "chat.completion");
  assert.deepEqual(answer.choices, [{ index: 0, message: { role: "assistant", content: "Hello", refusal: null }, finish_reason: "stop", logprobs: null }]);
  assert.equal(answer.usage.completion_tokens, 6);
  assert.equal(answer.usage.prompt_tokens_details.cached_tokens, 3);
  const { request } = seen.requests[0];
  assert.equal(request.maxTokens, 9);
  assert.deepEqual(request.sampling, { temperature: 0, topP: 1, topK: 0, minP: 0, seed: 5 });
  assert.deepEqual(request.ids, codec.encode(codec.render(messages), false));
});

test("a streamed answer: role first, then pieces, the reason, and usage where asked for", async () => {
  const { chat } = completions([bytes("He"), bytes("🙂").slice(0, 2), bytes("🙂").slice(2), [257]]);
  const chunks = [];
  for await (const chunk of await chat.create({ messages, stream: true, stream_options: { include_usage: true } })) chunks.push(chunk);
  assert.deepEqual(chunks[0].choices[0].delta, { role: "assistant", content: "" });
  assert.deepEqual(chunks.map((chunk) => chunk.choices[0]?.delta.content).filter(Boolean), ["He", "🙂"]);
  assert.equal(chunks.at(-2).choices[0].finish_reason, "stop");
  assert.deepEqual(chunks.at(-1).choices, []);
  assert.equal(chunks.at(-1).usage.total_tokens, chunks.at(-1).usage.prompt_tokens + chunks.at(-1).usage.completion_tokens);
  assert.equal(new Set(chunks.map((chunk) => chunk.id)).size, 1);
});

test("a stop text ends the answer before itself, also across pieces", async () => {
  for (const batches of [[bytes("one END two")], [...bytes("one END two")].map((byte) => [byte])]) {
    const { chat, seen } = completions(batches, "length");
    const answer = await chat.create({ messages, stop: ["END", "never"] });
    assert.equal(answer.choices[0].message.content, "one ");
    assert.equal(answer.choices[0].finish_reason, "stop");
    assert.ok(seen.left && !seen.finished, "the engine was stopped");
  }
  const { chat } = completions([bytes("almost EN")], "length");
  const answer = await chat.create({ messages, stop: "END" });
  assert.equal(answer.choices[0].message.content, "almost EN");
});

test("what is not supported is named, nothing is ignored", async () => {
  const { chat, seen } = completions([]);
  for (const extra of [{ tools: [] }, { tool_choice: "auto" }, { logit_bias: {} }, { n: 2 }, { response_format: { type: "yaml" } }, { whatever: 1 }, { user: "x" }]) {
    const name = Object.keys(extra)[0];
    await assert.rejects(chat.create({ messages, ...extra }), (error) => error.code === "unsupported-option" && error.message.includes(name));
  }
  const parts = (content) => ({ messages: [{ role: "user", content }] });
  for (const [extra, name] of [
    [{ stream: true, stream_options: { other: true } }, "stream_options.other"],
    [parts([{ type: "image_url", image_url: {} }]), "messages[0].content[0] of type image_url"],
    [{ messages: [{ role: "assistant", content: null, tool_calls: [] }] }, "messages[0].tool_calls"],
  ]) await assert.rejects(chat.create({ messages, ...extra }), (error) => error.code === "unsupported-option" && error.message.includes(name));
  for (const wrong of [
    { temperature: -1 }, { top_p: 2 }, { max_tokens: 0 }, { temperature: "hot" }, { messages: [] }, { presence_penalty: 3 }, { seed: -1 },
    { seed: 0.5 }, { top_logprobs: 2 }, { logprobs: true, top_logprobs: 21 }, { stream_options: { include_usage: true } }, { stop: [1] },
    { response_format: { type: "json_schema" } }, { response_format: { type: "json_schema", json_schema: { name: "x" } } },
  ]) {
    await assert.rejects(chat.create({ messages, ...wrong }), { code: "bad-argument" });
  }
  assert.equal(seen.requests.length, 0);
});

test("without a tokenizer, chat says what to use", async () => {
  const chat = new ChatCompletions({ codec: undefined, modelName: "x", stopIds: [], generate: undefined });
  await assert.rejects(chat.create({ messages }), (error) => error.code === "no-tokenizer" && /generate/.test(error.hint));
});

test("every option arrives at the engine", async () => {
  const { chat, seen } = completions([[257]]);
  const signal = new AbortController().signal;
  await chat.create({
    messages, max_tokens: 3, max_completion_tokens: 4, temperature: 0.5, top_p: 0.9, top_k: 40, min_p: 0.1, seed: 7, presence_penalty: 0.5,
    frequency_penalty: -0.5, repetition_penalty: 1.1, logprobs: true, top_logprobs: 3, response_format: { type: "text" }, n: 1, model: "other", stop: null, user: null, signal,
  });
  const { request, signal: passed } = seen.requests[0];
  assert.equal(request.maxTokens, 4);
  assert.deepEqual(request.sampling, { temperature: 0.5, topP: 0.9, topK: 40, minP: 0.1, seed: 7, presencePenalty: 0.5, frequencyPenalty: -0.5, repetitionPenalty: 1.1 });
  assert.equal(request.logprobs, 3);
  assert.equal(passed, signal);
  await chat.create({ messages, presence_penalty: 0, repetition_penalty: 1 });
  assert.ok(!Object.keys(seen.requests[1].request.sampling).some((name) => name.endsWith("Penalty")), "what changes nothing costs nothing");
  assert.equal(seen.requests[1].request.constraint, undefined);
});

test("a format is a schema for the engine: on one line unless the schema says how", async () => {
  const { chat, seen } = completions([[257]]);
  const schema = { type: "object", properties: { a: { type: "integer" } } };
  await chat.create({ messages, response_format: { type: "json_object" } });
  await chat.create({ messages, response_format: { type: "json_schema", json_schema: { name: "x", strict: true, schema } } });
  const own = { ...schema, "x-guidance": { whitespace_flexible: true } };
  await chat.create({ messages, response_format: { type: "json_schema", json_schema: { schema: own } } });
  const asked = seen.requests.map(({ request }) => JSON.parse(request.constraint.schema));
  assert.equal(asked[0].type, "object");
  assert.equal(asked[1]["x-guidance"].whitespace_flexible, false);
  assert.deepEqual(asked[1].properties, schema.properties);
  assert.deepEqual(asked[2], own);
  assert.equal(seen.requests[0].request.constraint.vocabulary, codec.vocabulary());
});

test("either signal stops the answer", async () => {
  const { chat, seen } = completions([[257]]);
  const [a, b] = [new AbortController(), new AbortController()];
  await chat.create({ messages, signal: a.signal }, { signal: b.signal });
  const { signal } = seen.requests[0];
  assert.ok(!signal.aborted);
  b.abort();
  assert.ok(signal.aborted);
});

test("messages in parts of text, and variables of the template", async () => {
  const withMark = new TextCodec(tokenizerJson, JSON.stringify({ chat_template: `{{ mark }}${template}` }));
  assert.equal(withMark.render(messages, { mark: "<|im_end|>" }), `<|im_end|>${codec.render(messages)}`);
  const { chat, seen } = completions([[257]]);
  await chat.create({ messages: [{ role: "user", content: [{ type: "text", text: "H" }, { type: "text", text: "i" }] }], chat_template_kwargs: { add_generation_prompt: false } });
  assert.deepEqual(seen.requests[0].request.ids, codec.encode("<|im_start|>user\nHi<|im_end|>\n", false));
});

test("how likely tokens were, without the id that ended the answer", async () => {
  const { chat } = completions([bytes("H"), [...bytes("i"), 257]]);
  const answer = await chat.create({ messages, logprobs: true, top_logprobs: 1 });
  assert.deepEqual(answer.choices[0].logprobs.content, [..."Hi"].map((token) => {
    const entry = { token, bytes: bytes(token), logprob: -0.5 };
    return { ...entry, top_logprobs: [entry] };
  }));
  const chunks = [];
  for await (const chunk of await chat.create({ messages, stream: true, logprobs: true })) chunks.push(chunk);
  assert.equal(chunks.flatMap((chunk) => chunk.choices[0].logprobs?.content ?? []).length, 2);
});

test("raw text, whole and streamed, in the shape of OpenAI's older API", async () => {
  const { raw, seen } = completions([bytes("He"), bytes("llo")], "length");
  const whole = await raw.create({ prompt: "Say", temperature: 0, max_tokens: 5, logprobs: 1 });
  assert.equal(whole.object, "text_completion");
  assert.equal(whole.choices[0].text, "Hello");
  assert.equal(whole.choices[0].finish_reason, "length");
  assert.deepEqual(whole.choices[0].logprobs.text_offset, [0, 1, 2, 3, 4]);
  assert.deepEqual(whole.choices[0].logprobs.top_logprobs[0], { H: -0.5 });
  assert.deepEqual(seen.requests[0].request.ids, bytes("Say"));
  const pieces = [];
  for await (const piece of await raw.create({ prompt: bytes("Say"), stream: true, stream_options: { include_usage: true } })) pieces.push(piece);
  assert.equal(pieces.flatMap(({ choices }) => choices.map(({ text }) => text)).join(""), "Hello");
  assert.equal(pieces.at(-1).usage.completion_tokens, 5);
  await assert.rejects(raw.create({ prompt: ["a", "b"] }), { code: "bad-argument" });
  await assert.rejects(raw.create({ prompt: "x", echo: true }), (error) => error.code === "unsupported-option" && /echo/.test(error.message));
});
