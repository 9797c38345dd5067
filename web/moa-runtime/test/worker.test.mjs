// The two sides of the protocol over a real message channel, with a stand-in for the wasm engine.
import assert from "node:assert/strict";
import { test } from "node:test";
import { MessageChannel } from "node:worker_threads";

import { Client } from "../dist/client.js";
import { MoaError } from "../dist/errors.js";
import { attachHost } from "../dist/host.js";
import { continuation, FakeEngine, fakeFetch, fakeModule, fakeNavigator, shardEntry } from "./fakes.mjs";

const prompt = Array.from({ length: 30 }, (_, i) => i);
const files = { "/w": Uint8Array.from({ length: 40 }, (_, i) => i) };
const shards = [shardEntry("w", files["/w"])];

async function connect(t, engine = new FakeEngine(), ...spares) {
  const { port1, port2 } = new MessageChannel();
  const undo = fakeFetch(files);
  const undoNavigator = fakeNavigator();
  t.after(() => { port1.close(); port2.close(); undo(); undoNavigator(); });
  attachHost(port2, async () => fakeModule([engine, ...spares]));
  port2.start();
  const recoveries = [];
  const client = new Client(port1, (recovery) => recoveries.push(recovery));
  port1.start();
  const location = { kind: "url", url: "http://bundle.test/manifest.json" };
  const load = (signal) => client.load(
    { planName: "p", planBytes: undefined, contextLength: 256, options: {} },
    { location, manifestJson: "{}", shards, wasmUrl: undefined, cache: undefined },
    (progress) => engine.progress?.push(progress),
    signal,
  );
  return { client, engine, load, recoveries };
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

/** An engine whose device is lost when it has made `after` tokens. */
function mortal(after, message = "device-lost") {
  const engine = new FakeEngine();
  let made = 0;
  const { collect } = FakeEngine.prototype;
  engine.collect = async function () {
    const count = this.flights[0].ids.length;
    if (made + count > after) {
      // Some failures come before the word that the device is lost.
      if (message === "device-lost") engine.lostReason = "driver reset";
      else {
        setTimeout(() => (engine.lostReason = "driver reset"), 5);
        throw new Error(message);
      }
    }
    made += count;
    return collect.call(this);
  };
  return engine;
}

for (const after of [0, 1, 5, 13]) {
  for (const message of ["device-lost", "the mapping was refused"]) {
    test(`a device that is lost after ${after} tokens (${message}) is replaced, and the stream goes on as if nothing had been`, async (t) => {
      const first = mortal(after, message);
      const { client, load, recoveries } = await connect(t, first, new FakeEngine());
      await load();
      const events = [];
      for await (const event of client.generate(request(prompt, 20))) events.push(event);
      assert.deepEqual(events.flatMap((event) => (event.kind === "tokens" ? event.ids : [])), continuation(prompt, 20));
      const { stats } = events.at(-1);
      assert.deepEqual([stats.recoveries, stats.completionTokens, stats.promptTokens], [1, 20, prompt.length]);
      assert.ok(first.freed);
      assert.match(recoveries[0].reason, /driver reset/);
      assert.equal(recoveries.at(-1).progress.phase, "ready");
    });
  }
}

test("a device that is lost between requests, or under logits, is replaced as well", async (t) => {
  const first = new FakeEngine();
  const { client, load } = await connect(t, first, new FakeEngine());
  await load();
  await collect(client.generate(request(prompt)));
  first.lostReason = "gone overnight";
  assert.equal((await client.logits(prompt)).length, 1009);
  assert.deepEqual(await collect(client.generate(request(prompt))), continuation(prompt, 8));
});

test("an abort while a lost device is replaced ends its request alone", async (t) => {
  const controller = new AbortController();
  const slow = Object.assign(new FakeEngine(), { finishLoading: async () => { controller.abort(); await new Promise((resolve) => setTimeout(resolve, 20)); } });
  const { client, load } = await connect(t, mortal(2), slow, new FakeEngine());
  await load();
  await assert.rejects(collect(client.generate(request(prompt, 50), controller.signal)), { code: "aborted" });
  assert.deepEqual(await collect(client.generate(request(prompt))), continuation(prompt, 8));
  assert.ok(slow.freed);
});

test("devices that are lost again and again, or cannot be had, end with a typed error", async (t) => {
  const again = await connect(t, mortal(2), mortal(2), mortal(2), mortal(2), mortal(2));
  await again.load();
  await assert.rejects(collect(again.client.generate(request(prompt, 50))), { code: "device-lost" });
  const none = await connect(t, mortal(2));
  await none.load();
  await assert.rejects(collect(none.client.generate(request(prompt, 50))), (error) => error.code === "device-lost" && /could not be replaced: no adapter/.test(error.message));
  await assert.rejects(collect(none.client.generate(request(prompt))), { code: "unloaded" });
});

test("a snapshot crosses the channel, and fits its own engine only", async (t) => {
  const { client, load } = await connect(t);
  await load();
  const made = await collect(client.generate(request(prompt)));
  const snapshot = await client.snapshot();
  assert.deepEqual(snapshot.ids, [...prompt, ...made.slice(0, -1)]);
  await client.restore(snapshot);
  await assert.rejects(client.restore({ ...snapshot, of: "another" }), { code: "bad-argument" });
});

test("unloading in the middle of a stream frees the engine, and fails what waits", async (t) => {
  const { client, engine, load } = await connect(t);
  await load();
  engine.beforeStep = () => new Promise((resolve) => setTimeout(resolve, 5));
  const refused = assert.rejects(collect(client.generate(request(prompt, 200))), { code: "unloaded" });
  await new Promise((resolve) => setTimeout(resolve, 20));
  await client.unload(new MoaError("unloaded", "the engine was unloaded"));
  await refused;
  assert.ok(engine.freed);
  await assert.rejects(client.logits(prompt), { code: "unloaded" });
});

test("a reader that takes nothing holds the engine within what can be taken back", async (t) => {
  const { client, engine, load } = await connect(t);
  await load();
  const stream = client.generate(request(prompt, 200));
  let seen = 0;
  for await (const event of stream) {
    if (event.kind !== "tokens") continue;
    seen += event.ids.length;
    await new Promise((resolve) => setTimeout(resolve, 50));
    const ahead = engine.calls.filter(([kind]) => kind === "decode").reduce((sum, [, count]) => sum + count, 0) - seen;
    assert.ok(ahead <= 64, `${ahead} tokens ahead`);
    if (seen > 20) break;
  }
});
