// The two sides of the protocol over a real message channel, with a stand-in for the wasm engine.
import assert from "node:assert/strict";
import { test } from "node:test";
import { MessageChannel } from "node:worker_threads";

import { Client } from "../dist/client.js";
import { MoaError } from "../dist/errors.js";
import { attachHost } from "../dist/host.js";
import { continuation, FakeEngine, fakeFetch, fakeModule } from "./fakes.mjs";

const prompt = Array.from({ length: 30 }, (_, i) => i);
const shards = [{ url: "http://bundle.test/w", bytes: 40 }];
const files = { "/w": Uint8Array.from({ length: 40 }, (_, i) => i) };

async function connect(t, engine = new FakeEngine()) {
  const { port1, port2 } = new MessageChannel();
  const undo = fakeFetch(files);
  t.after(() => { port1.close(); port2.close(); undo(); });
  attachHost(port2, async () => fakeModule(engine));
  port2.start();
  const client = new Client(port1);
  port1.start();
  const load = (signal) => client.load(
    { manifestJson: "{}", shards, planName: "p", planBytes: undefined, contextLength: 256, wasmUrl: undefined, options: {} },
    (progress) => engine.progress?.push(progress),
    signal,
  );
  return { client, engine, load };
}

async function collect(stream) {
  const tokens = [];
  for await (const event of stream) if (event.kind === "tokens") tokens.push(...event.ids);
  return tokens;
}

const request = (ids, maxTokens = 8) => ({ ids, maxTokens, stopIds: [], sampling: {} });

test("load reports bytes, then tokens stream", async (t) => {
  const engine = Object.assign(new FakeEngine(), { progress: [] });
  const { client, load } = await connect(t, engine);
  const info = await load();
  assert.equal(info.contextLength, 256);
  assert.equal(engine.progress.at(-1).phase, "ready");
  assert.equal(engine.progress.at(-1).loaded, 40);
  const loaded = engine.progress.map((progress) => progress.loaded);
  assert.deepEqual(loaded, [...loaded].sort((a, b) => a - b));
  assert.deepEqual(await collect(client.generate(request(prompt))), continuation(prompt, 8));
});

test("nothing works before a load, and a failed load frees the engine", async (t) => {
  const { client, engine, load } = await connect(t);
  await assert.rejects(collect(client.generate(request(prompt))), { code: "unloaded" });
  engine.writeShard = () => { throw Object.assign(new Error("chunk 0 of shard 0 is damaged"), { code: "hash-mismatch", hint: "again" }); };
  await assert.rejects(load(), (error) => error instanceof MoaError && error.code === "hash-mismatch" && error.hint === "again");
  assert.ok(engine.freed);
});

test("a load can be aborted", async (t) => {
  const { load } = await connect(t);
  const controller = new AbortController();
  const loading = load(controller.signal);
  controller.abort();
  await assert.rejects(loading, { code: "aborted" });
});

test("an abort ends a stream with a typed error, and the next request is right", async (t) => {
  const { client, load } = await connect(t);
  await load();
  const controller = new AbortController();
  const stream = client.generate(request(prompt, 200), controller.signal);
  await assert.rejects(async () => {
    for await (const event of stream) if (event.kind === "tokens") controller.abort(new Error("enough"));
  }, (error) => error.code === "aborted" && error.cause.message === "enough");
  assert.deepEqual(await collect(client.generate(request(prompt))), continuation(prompt, 8));
});

test("leaving the loop stops the engine", async (t) => {
  const { client, engine, load } = await connect(t);
  await load();
  for await (const event of client.generate(request(prompt, 200))) if (event.kind === "tokens") break;
  assert.deepEqual(await collect(client.generate(request(prompt))), continuation(prompt, 8));
  assert.ok(engine.calls.filter(([kind]) => kind === "decode").length < 60, "the first answer did not run to its end");
});

test("two requests at once run one after the other", async (t) => {
  const { client, load } = await connect(t);
  await load();
  const other = [...prompt].reverse();
  const [first, second] = await Promise.all([collect(client.generate(request(prompt))), collect(client.generate(request(other)))]);
  assert.deepEqual(first, continuation(prompt, 8));
  assert.deepEqual(second, continuation(other, 8));
});

test("a dead worker fails what waits and what comes", async (t) => {
  const engine = new FakeEngine();
  const { client, load } = await connect(t, engine);
  await load();
  engine.beforeStep = () => new Promise(() => undefined);
  const waiting = collect(client.generate(request(prompt)));
  setTimeout(() => client.die(new MoaError("unloaded", "the engine was unloaded")), 5);
  await assert.rejects(waiting, { code: "unloaded" });
  await assert.rejects(collect(client.generate(request(prompt))), { code: "unloaded" });
});
