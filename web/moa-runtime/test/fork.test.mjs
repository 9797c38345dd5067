// Several engines of one set of weights, each through a channel of its own.
import assert from "node:assert/strict";
import { test } from "node:test";
import { MessageChannel } from "node:worker_threads";

import { Client } from "../dist/client.js";
import { MoaError } from "../dist/errors.js";
import { attachHost } from "../dist/host.js";
import { continuation, FakeEngine, fakeFetch, fakeModule, fakeNavigator, shardEntry } from "./fakes.mjs";

const prompt = Array.from({ length: 30 }, (_, i) => i);
const other = [...prompt].reverse();
const files = { "/w": Uint8Array.from({ length: 40 }, (_, i) => i) };
const model = {
  location: { kind: "url", url: "http://bundle.test/manifest.json" }, manifestJson: "{}", shards: [shardEntry("w", files["/w"])],
  wasmUrl: undefined, cache: undefined,
};
const wanted = { planName: "p", planBytes: undefined, contextLength: 256, options: {} };
const gone = () => new MoaError("unloaded", "the engine was unloaded");

/** The first engine, and a way to others beside it. */
async function connect(t, ...engines) {
  const undoFetch = fakeFetch(files);
  const undoNavigator = fakeNavigator();
  const ports = [];
  t.after(() => { for (const port of ports) port.close(); undoFetch(); undoNavigator(); });
  const channel = () => {
    const { port1, port2 } = new MessageChannel();
    ports.push(port1, port2);
    return [port1, port2];
  };
  const [near, far] = channel();
  attachHost(far, async () => fakeModule(engines));
  const client = new Client(near);
  await client.load(wanted, model, () => undefined);
  const fork = async (signal) => {
    const [here, there] = channel();
    client.fork(there, [there]);
    const made = new Client(here);
    await made.load(wanted, undefined, () => undefined, signal);
    return made;
  };
  return { client, fork, requests: undoFetch.requests };
}

async function collect(client, ids, maxTokens = 12) {
  const tokens = [];
  for await (const event of client.generate({ ids, maxTokens, stopIds: [], sampling: {} }, undefined)) if (event.kind === "tokens") tokens.push(...event.ids);
  return tokens;
}

test("forks answer beside the first engine, nothing is fetched for them, and the weights go with the last", async (t) => {
  const [first, second, third] = [new FakeEngine(), new FakeEngine(), new FakeEngine()];
  first.forks = [second, third];
  const { client, fork, requests } = await connect(t, first);
  const asked = requests.length;
  const beside = await fork();
  const [one, two] = await Promise.all([collect(client, prompt), collect(beside, other)]);
  assert.deepEqual([one, two], [continuation(prompt, 12), continuation(other, 12)]);
  assert.equal(requests.length, asked);

  // The first one goes in the middle of the other's answer.
  const running = collect(beside, prompt, 60);
  await client.unload(gone());
  assert.deepEqual(await running, continuation(prompt, 60));
  assert.deepEqual([first.freed, second.freed, first.weightsGone], [true, false, false]);
  await assert.rejects(fork(), { code: "unloaded" });
  await beside.unload(gone());
  assert.deepEqual([second.freed, first.weightsGone], [true, true]);
});

test("a device that is lost under several engines is replaced once, for all of them", async (t) => {
  const [first, second, again, forked] = Array.from({ length: 4 }, () => new FakeEngine());
  first.forks = [second];
  again.forks = [forked];
  // A second load would find no device.
  const { client, fork } = await connect(t, first, again);
  const beside = await fork();
  first.lostReason = second.lostReason = "driver reset";
  const [one, two] = await Promise.all([collect(client, prompt), collect(beside, other)]);
  assert.deepEqual([one, two], [continuation(prompt, 12), continuation(other, 12)]);
  assert.deepEqual([first, second].map((engine) => engine.freed), [true, true]);
  assert.ok(first.weightsGone);
  assert.deepEqual([again, forked].map((engine) => engine.calls.some(([kind]) => kind === "decode")), [true, true]);
});

test("a fork that cannot be made, or is aborted, leaves the others as they are", async (t) => {
  const [first, late] = [new FakeEngine(), new FakeEngine()];
  const { client, fork } = await connect(t, first);
  await assert.rejects(fork(), { code: "out-of-memory" });
  const controller = new AbortController();
  late.finishLoading = async () => { controller.abort(); await new Promise((resolve) => setTimeout(resolve, 20)); };
  first.forks = [late];
  await assert.rejects(fork(controller.signal), { code: "aborted" });
  // Its host takes a moment longer.
  await new Promise((resolve) => setTimeout(resolve, 40));
  assert.deepEqual(await collect(client, prompt), continuation(prompt, 12));
  assert.deepEqual([late.freed, first.freed, first.weightsGone], [true, false, false]);
});
