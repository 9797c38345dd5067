// The two ways in from other libraries: the AI SDK itself over the provider, and WebLLM's calls.
import assert from "node:assert/strict";
import { test } from "node:test";

import { Output, generateText, jsonSchema, streamText } from "ai";

import { moa } from "../dist/ai-sdk.js";
import { ChatCompletions } from "../dist/chat.js";
import { MoaError } from "../dist/errors.js";
import { WebLlmEngine } from "../dist/webllm.js";

const bytes = (text) => [...new TextEncoder().encode(text)];
const codec = {
  render: (messages) => JSON.stringify(messages),
  encode: (text) => bytes(text),
  decode: (ids) => new TextDecoder().decode(Uint8Array.from(ids)),
  vocabulary: () => "the vocabulary",
};

/** An engine that answers with these pieces; `seen` is what it was asked. */
function engine(pieces, { fail } = {}) {
  const seen = [];
  const chat = {
    completions: new ChatCompletions({
      codec, modelName: "tiny", stopIds: [0],
      async *generate(request, signal) {
        seen.push(request);
        yield { kind: "prefilled", done: request.ids.length - 2, total: request.ids.length - 2 };
        for (const piece of pieces) {
          yield { kind: "tokens", ids: bytes(piece) };
          if (signal?.aborted) throw new MoaError("aborted", "the request was aborted");
        }
        if (fail) throw fail;
        yield {
          kind: "finished", reason: "length",
          stats: { promptTokens: request.ids.length, cachedTokens: 2, completionTokens: 5, prefillMs: 10, decodeMs: 100, turnSnapshotBytes: 0, recoveries: 0 },
        };
      },
    }),
  };
  return { chat, modelName: "tiny", seen };
}

test("the AI SDK generates and streams", async () => {
  const one = engine(["He", "llo"]);
  const result = await generateText({
    model: moa(one), system: "Be brief.", prompt: "Hi", maxOutputTokens: 5, temperature: 0.5, topP: 0.9, topK: 3, seed: 4, stopSequences: ["END"], presencePenalty: 1, frequencyPenalty: 0.5,
  });
  assert.equal(result.text, "Hello");
  assert.equal(result.finishReason, "length");
  assert.equal(result.usage.outputTokens, 5);
  const [request] = one.seen;
  assert.equal(request.maxTokens, 5);
  assert.deepEqual(request.sampling, { temperature: 0.5, topP: 0.9, topK: 3, minP: 0, seed: 4, presencePenalty: 1, frequencyPenalty: 0.5 });
  assert.deepEqual(JSON.parse(codec.decode(request.ids)), [{ role: "system", content: "Be brief." }, { role: "user", content: "Hi" }]);

  const { textStream, usage } = streamText({ model: moa(engine(["He", "l", "lo"])), prompt: "Hi" });
  const pieces = [];
  for await (const piece of textStream) pieces.push(piece);
  assert.equal(pieces.join(""), "Hello");
  assert.ok(pieces.length > 1);
  assert.equal((await usage).outputTokens, 5);
});

test("the AI SDK's objects come by a schema", async () => {
  const one = engine(['{"sky": "blue"}']);
  const schema = jsonSchema({ type: "object", properties: { sky: { type: "string" } } });
  const { output } = await generateText({ model: moa(one), prompt: "Hi", output: Output.object({ schema }) });
  assert.deepEqual(output, { sky: "blue" });
  const { constraint } = one.seen[0];
  assert.deepEqual(JSON.parse(constraint.schema).properties, { sky: { type: "string" } });
  assert.equal(constraint.vocabulary, "the vocabulary");
});

test("the AI SDK hears of what is not supported, and of failures", async () => {
  const model = moa(engine(["x"]));
  const prompt = [{ role: "user", content: [{ type: "text", text: "Hi" }] }];
  await assert.rejects(model.doGenerate({ prompt, tools: [{}] }), (error) => error.code === "unsupported-option" && /tools/.test(error.message));
  await assert.rejects(model.doGenerate({ prompt, responseFormat: { type: "yaml" } }), { code: "unsupported-option" });
  await assert.rejects(model.doGenerate({ prompt: [{ role: "user", content: [{ type: "file" }] }] }), { code: "unsupported-option" });
  const failing = moa(engine(["x"], { fail: new MoaError("device-lost", "gone") }));
  const parts = [];
  for await (const part of (await failing.doStream({ prompt })).stream) parts.push(part);
  assert.equal(parts.at(-1).error.code, "device-lost");
});

test("WebLLM's calls before a model is loaded are typed errors", async () => {
  const empty = new WebLlmEngine();
  await assert.rejects(empty.chat.completions.create({ messages: [{ role: "user", content: "Hi" }] }), { code: "unloaded" });
  await empty.resetChat();
  empty.interruptGenerate();
  await empty.unload();
  assert.equal(await empty.getMessage(), "");
});
