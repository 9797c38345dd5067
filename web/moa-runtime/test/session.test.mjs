import assert from "node:assert/strict";
import { test } from "node:test";

import { MoaError } from "../dist/errors.js";
import { Session } from "../dist/session.js";
import { continuation, FakeEngine } from "./fakes.mjs";

const prompt = Array.from({ length: 30 }, (_, i) => i);

async function run(session, ids, { maxTokens = 20, stopIds = [], signal = new AbortController().signal, onTokens, sampling = {}, ...more } = {}) {
  const tokens = [];
  const logprobs = [];
  const { reason, stats } = await session.generate(
    { ids, maxTokens, stopIds, sampling, ...more },
    { onPrefill: () => undefined, onTokens: (ids, probable) => { tokens.push(...ids); logprobs.push(...(probable ?? [])); return onTokens?.(ids); } },
    signal,
  );
  return { tokens, reason, stats, logprobs };
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

/** A conversation of turns whose answers are longer than the slack. */
async function conversation(session, turns) {
  const prompts = [];
  let ids = [];
  for (let turn = 0; turn < turns; turn++) {
    ids = [...ids, ...Array.from({ length: 80 }, (_, i) => 100 * turn + i)];
    prompts.push(ids);
    const { tokens, stats } = await run(session, ids, { maxTokens: 100 });
    assert.deepEqual(tokens, continuation(ids, 100));
    // All but the last token of the answer before were in the cache.
    assert.equal(stats.cachedTokens, turn === 0 ? 0 : ids.length - 81);
    ids = [...ids, ...tokens];
  }
  return prompts;
}
const prefilled = (engine) => engine.calls.filter(([kind]) => kind === "prefill").reduce((sum, [, count]) => sum + count, 0);

test("another try at an answer starts from the copy at the end of its prompt", async () => {
  const engine = new FakeEngine({ context: 1000 });
  const session = new Session(engine, 32, 1e6);
  const prompts = await conversation(session, 3);
  for (const at of [2, 1, 2, 0]) {
    engine.calls.length = 0;
    const { tokens, stats } = await run(session, prompts[at], { maxTokens: 100 });
    assert.deepEqual(tokens, continuation(prompts[at], 100));
    assert.equal(prefilled(engine), 1, "only the token whose logits the answer begins with");
    assert.equal(stats.cachedTokens, prompts[at].length - 1);
  }
});

test("an edited turn starts from the last copy that it shares, or from within the slack of it", async () => {
  const engine = new FakeEngine({ context: 1000 });
  const session = new Session(engine, 32, 1e6);
  const prompts = await conversation(session, 3);
  // The second question begins otherwise: what is shared ends at the first answer, and the copy before it is used.
  const edited = [...prompts[1].slice(0, 180), 900, 901];
  engine.calls.length = 0;
  const early = await run(session, edited, { maxTokens: 3 });
  assert.deepEqual(early.tokens, continuation(edited, 3));
  assert.deepEqual(engine.calls.find(([kind]) => kind === "restoreRings"), ["restoreRings", 80]);
  assert.equal(prefilled(engine), 102);
  // Its end differs: the copy of that very prompt is taken back by a few tokens.
  const close = [...prompts[2].slice(0, -30), 900];
  engine.calls.length = 0;
  const late = await run(session, close, { maxTokens: 3 });
  assert.deepEqual(late.tokens, continuation(close, 3));
  assert.deepEqual(engine.calls[0], ["restoreRings", 440]);
  assert.deepEqual(engine.calls[1], ["rewind", 30]);
  assert.equal(prefilled(engine), 1);
});

test("copies stay within their bytes, oldest dropped first; none without room or need", async () => {
  const engine = new FakeEngine({ context: 1000 });
  const session = new Session(engine, 32, 5000);
  await conversation(session, 3);
  assert.equal(engine.copies, 1, "440 tokens at ten bytes");
  const none = new FakeEngine({ context: 1000 });
  await conversation(new Session(none, 32, 0), 3);
  assert.equal(none.copies, 0);
  const dense = new FakeEngine({ context: 1000, unwrapped: 1000 });
  await conversation(new Session(dense, 32, 1e6), 3);
  assert.equal(dense.copies, 0, "where no ring forgets, a rewind does");
  const full = new FakeEngine({ context: 1000 });
  full.copyRings = async () => { throw Object.assign(new Error("no room"), { code: "out-of-memory" }); };
  await conversation(new Session(full, 32, 1e6), 2);
  session.close();
  assert.equal(engine.copies, 0);
});

test("a saved cache goes on in another engine", async () => {
  const session = new Session(new FakeEngine(), 32);
  const { tokens } = await run(session, prompt, { maxTokens: 10 });
  const saved = await session.save();
  assert.deepEqual(saved.ids, [...prompt, ...tokens.slice(0, -1)]);
  const other = new FakeEngine();
  const later = new Session(other, 32);
  // The stand-in stores ids as bytes.
  await later.restore({ ...saved, ids: saved.ids.map((id) => id % 256) });
  const next = [...saved.ids.map((id) => id % 256), 5];
  const { stats } = await run(later, next, { maxTokens: 3 });
  assert.equal(stats.cachedTokens, saved.ids.length);
  await assert.rejects(later.restore({ ...saved, layers: [] }), { code: "bad-argument" });
});

test("probabilities come with the tokens, and change none", async () => {
  const { tokens, logprobs } = await run(new Session(new FakeEngine(), 32), prompt, { logprobs: 2 });
  assert.deepEqual(tokens, continuation(prompt, 20));
  assert.deepEqual(logprobs.map(({ id }) => id), tokens);
  const normalizer = Math.log(Math.exp(10) + Math.exp(9) + 1007);
  for (const { id, logprob, top } of logprobs) {
    assert.ok(Math.abs(logprob - (10 - normalizer)) < 1e-6);
    assert.deepEqual(top.map((one) => one.id), [id, (id + 1) % 1009]);
    assert.ok(Math.abs(top[1].logprob - (9 - normalizer)) < 1e-6);
  }
});

test("penalties are the device's, which is told what the answer holds already", async () => {
  const engine = new FakeEngine({ context: 1000 });
  const session = new Session(engine, 32, 1e6);
  const sampling = { temperature: 0.7, seed: 3, frequencyPenalty: 0.75 };
  await run(session, prompt, { maxTokens: 3, sampling });
  assert.deepEqual(engine.calls.find(([kind]) => kind === "setText"), ["setText", 30, 0]);
  assert.deepEqual(engine.samplings[0], sampling);
  const made = continuation(prompt, 3);
  const other = new FakeEngine();
  const rest = await run(new Session(other, 32), [...prompt, ...made], { maxTokens: 3, answered: 3, sampling });
  assert.deepEqual(other.calls.findLast(([kind]) => kind === "setText"), ["setText", 33, 3]);
  assert.equal(rest.stats.completionTokens, 6);
  assert.equal(rest.stats.promptTokens, prompt.length);
  engine.calls.length = 0;
  await run(session, prompt, { maxTokens: 3, sampling: { presencePenalty: 0, repetitionPenalty: 1 } });
  assert.ok(!engine.calls.some(([kind]) => kind === "setText"), "what changes nothing costs nothing");
});

test("batches are on their way while another is read, one or two more, and none outlives its request", async () => {
  for (const [how, batchMs, others] of [["stop", 0, 2], ["abort", 0, 2], ["length", 0, 2], ["length", 30, 1]]) {
    const engine = new FakeEngine({ context: 1000 });
    if (batchMs) engine.beforeStep = () => new Promise((resolve) => setTimeout(resolve, batchMs));
    const session = new Session(engine, 32);
    const controller = new AbortController();
    const expected = continuation(prompt, 60);
    // More stop tokens than the device knows: then this side finds the stop, and takes back what followed it.
    const stopIds = how === "stop" ? [expected[30], ...Array.from({ length: 15 }, (_, i) => 2000 + i)] : [];
    let most = 0;
    const running = run(session, prompt, { maxTokens: 60, stopIds, signal: controller.signal, onTokens: () => {
      most = Math.max(most, engine.inFlight);
      if (how === "abort" && engine.len > 50) controller.abort();
    } });
    if (how === "abort") await assert.rejects(running, { code: "aborted" });
    else assert.deepEqual((await running).tokens, how === "stop" ? expected.slice(0, expected.indexOf(expected[30]) + 1) : expected);
    assert.equal(most, others, how);
    assert.equal(engine.inFlight, 0);
    const next = [...prompt, 3];
    assert.deepEqual((await run(session, next, { maxTokens: 5 })).tokens, continuation(next, 5));
  }
});

/** Three tokens from `schema.first` on, then the end: each allowed one follows from what was accepted. */
function countingGrammars() {
  const accepted = [];
  const grammar = async ({ schema }, ends) => ({
    mask(logits) {
      const allowed = accepted.length < 3 ? [schema.first + accepted.length] : ends;
      logits.forEach((_, id) => { if (!allowed.includes(id)) logits[id] = -Infinity; });
    },
    accept: (id) => accepted.push(id),
    free: () => accepted.push("freed"),
  });
  return { accepted, grammar };
}

test("a grammar's mask reaches the device's choice, and ends the answer", async () => {
  const grammars = countingGrammars();
  const { tokens, reason } = await run(new Session(new FakeEngine(), 32, 0, grammars), prompt, { stopIds: [77], constraint: { schema: { first: 40 } } });
  assert.deepEqual(tokens, [40, 41, 42, 77]);
  assert.equal(reason, "stop");
  assert.equal(grammars.accepted.at(-1), "freed");
});

test("an answer that is continued on another device goes on in its grammar", async () => {
  const grammars = countingGrammars();
  const { tokens, reason } = await run(
    new Session(new FakeEngine(), 32, 0, grammars), [...prompt, 40, 41], { answered: 2, stopIds: [77], constraint: { schema: { first: 40 } } },
  );
  assert.deepEqual(tokens, [42, 77]);
  assert.equal(reason, "stop");
  assert.deepEqual(grammars.accepted, [40, 41, 42, 77, "freed"]);
});

test("a reader that lags holds the engine", async () => {
  const engine = new FakeEngine();
  let open;
  const waiting = run(new Session(engine, 32), prompt, { maxTokens: 50, onTokens: () => new Promise((resolve) => (open = resolve)) });
  await new Promise((resolve) => setTimeout(resolve, 20));
  assert.equal(engine.calls.filter(([kind]) => kind === "decode").length, 2, "what is read, and the next one");
  const timer = setInterval(() => open(), 1);
  assert.equal((await waiting).tokens.length, 50);
  clearInterval(timer);
});
