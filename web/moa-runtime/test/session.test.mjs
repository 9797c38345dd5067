import assert from "node:assert/strict";
import { test } from "node:test";

import { MoaError } from "../dist/errors.js";
import { Session } from "../dist/session.js";
import { continuation, FakeEngine } from "./fakes.mjs";

const prompt = Array.from({ length: 30 }, (_, i) => i);

async function run(session, ids, { maxTokens = 20, stopIds = [], signal = new AbortController().signal, onTokens } = {}) {
  const tokens = [];
  const { reason, stats } = await session.generate(
    { ids, maxTokens, stopIds, sampling: {} },
    { onPrefill: () => undefined, onTokens: (more) => { tokens.push(...more); onTokens?.(more); } },
    signal,
  );
  return { tokens, reason, stats };
}

test("tokens are those of the model, whatever the batches", async () => {
  const engine = new FakeEngine();
  const { tokens, reason, stats } = await run(new Session(engine, 32), prompt);
  assert.deepEqual(tokens, continuation(prompt, 20));
  assert.equal(reason, "length");
  assert.deepEqual([stats.promptTokens, stats.cachedTokens, stats.completionTokens], [30, 0, 20]);
  assert.ok(engine.calls.some(([kind, count]) => kind === "decode" && count > 1), "a fast device decodes in batches");
});

test("a prompt that continues the last answer prefills only what is new", async () => {
  const engine = new FakeEngine();
  const session = new Session(engine, 32);
  const first = await run(session, prompt, { maxTokens: 10 });
  const second = [...prompt, ...first.tokens, 900, 901, 902];
  engine.calls.length = 0;
  const { tokens, stats } = await run(session, second, { maxTokens: 5 });
  assert.deepEqual(tokens, continuation(second, 5));
  // The last token of the first answer was pending: it is prefilled with the three new ones.
  assert.equal(stats.cachedTokens, 39);
  assert.deepEqual(engine.calls[0], ["prefill", 4]);
});

test("an edited prompt rewinds within the slack and starts over beyond it", async () => {
  const engine = new FakeEngine({ context: 512 });
  const session = new Session(engine, 32);
  await run(session, prompt, { maxTokens: 10 });
  const near = [...prompt.slice(0, 25), 700];
  assert.deepEqual((await run(session, near, { maxTokens: 3 })).tokens, continuation(near, 3));
  assert.ok(!engine.calls.some(([kind]) => kind === "reset"));
  const long = Array.from({ length: 120 }, (_, i) => i);
  await run(session, long, { maxTokens: 1 });
  const far = [...long.slice(0, 10), 700];
  assert.deepEqual((await run(session, far, { maxTokens: 3 })).tokens, continuation(far, 3));
  assert.ok(engine.calls.some(([kind]) => kind === "reset"));
});

test("the same prompt twice gives the same tokens", async () => {
  const session = new Session(new FakeEngine(), 32);
  const first = await run(session, prompt);
  const second = await run(session, prompt);
  assert.deepEqual(second.tokens, first.tokens);
  assert.equal(second.stats.cachedTokens, 29);
});

test("a stop id in the middle of a batch ends the answer, and what follows it is taken back", async () => {
  const expected = continuation(prompt, 20);
  for (let at = 0; at < 20; at++) {
    const engine = new FakeEngine();
    const session = new Session(engine, 32);
    const stop = expected[at];
    const length = expected.indexOf(stop) + 1;
    const { tokens, reason } = await run(session, prompt, { stopIds: [stop] });
    assert.equal(reason, "stop");
    assert.deepEqual(tokens, expected.slice(0, length));
    const next = [...prompt, ...tokens, 5, 6];
    assert.deepEqual((await run(session, next, { maxTokens: 4 })).tokens, continuation(next, 4));
  }
});

test("an abort acts between prefill chunks, and the engine goes on from there", async () => {
  const engine = new FakeEngine();
  const session = new Session(engine, 32);
  const controller = new AbortController();
  let chunks = 0;
  engine.beforeStep = async () => { if (++chunks === 2) controller.abort(); };
  await assert.rejects(run(session, prompt, { signal: controller.signal }), (error) => error instanceof MoaError && error.code === "aborted");
  assert.equal(engine.len, 16, "two chunks of eight were taken");
  engine.beforeStep = async () => undefined;
  const { tokens, stats } = await run(session, prompt, { maxTokens: 6 });
  assert.deepEqual(tokens, continuation(prompt, 6));
  assert.equal(stats.cachedTokens, 16);
});

test("an abort acts between tokens", async () => {
  const engine = new FakeEngine();
  const session = new Session(engine, 32);
  const controller = new AbortController();
  let count = 0;
  await assert.rejects(
    run(session, prompt, { maxTokens: 200, signal: controller.signal, onTokens: (ids) => { if ((count += ids.length) >= 5) controller.abort(); } }),
    (error) => error.code === "aborted",
  );
  assert.ok(count < 30);
  assert.deepEqual((await run(session, prompt, { maxTokens: 12 })).tokens, continuation(prompt, 12));
});

test("a failure of the engine is typed, and the next request starts from nothing", async () => {
  const engine = new FakeEngine();
  const session = new Session(engine, 32);
  engine.beforeStep = async (kind) => { if (kind === "decode") throw Object.assign(new Error("gone"), { code: "device-lost" }); };
  await assert.rejects(run(session, prompt), (error) => error instanceof MoaError && error.code === "device-lost");
  engine.beforeStep = async () => undefined;
  const { tokens, stats } = await run(session, prompt, { maxTokens: 4 });
  assert.deepEqual(tokens, continuation(prompt, 4));
  assert.equal(stats.cachedTokens, 0);
});

test("a prompt that leaves no room is refused, and an answer never outgrows the context", async () => {
  const session = new Session(new FakeEngine({ context: 32 }), 32);
  await assert.rejects(run(session, Array(32).fill(1)), (error) => error.code === "context-overflow");
  const { tokens, reason } = await run(session, prompt, { maxTokens: 100 });
  assert.equal(tokens.length, 2);
  assert.equal(reason, "length");
});
