// What runs before the worker: the manifest, the plan's choice, the checks of small files; and importing alone.
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { test } from "node:test";

import { createEngine, MoaError, probe } from "../dist/index.js";
import { parseManifest } from "../dist/manifest.js";
import { fakeFetch } from "./fakes.mjs";

const sha256 = (bytes) => createHash("sha256").update(bytes).digest("hex");
const planBytes = Buffer.from("plan");
const manifest = {
  name: "tiny",
  model: { max_context: 512, eos: [2] },
  tokenizer: null,
  default_plan: "half",
  plans: [{
    name: "half", file: "plan-half.bin", bytes: 4, sha256: sha256(planBytes),
    at: [{ context: 512, kv_density: 0.5, attention_density: 0.6, cache_bytes: 10, scratch_bytes: 1, dense_bytes: 20 }],
  }],
  files: [],
  shards: [{ file: "weights-000.bin", bytes: 12 }],
};

test("importing needs no browser, and the probe says what is missing", async () => {
  const verdict = await probe();
  assert.equal(verdict.ok, false);
  assert.match(verdict.message, /WebGPU/);
  await assert.rejects(createEngine({ model: "http://bundle.test/manifest.json" }), (error) =>
    error instanceof MoaError && error.code === "webgpu-unavailable" && error.hint.length > 0);
});

test("a manifest is read, and a damaged one is refused with what is wrong", () => {
  assert.deepEqual(parseManifest(JSON.stringify(manifest)), manifest);
  const broken = [
    ["{", /no JSON/],
    ["[]", /the manifest/],
    [JSON.stringify({ ...manifest, model: {} }), /model.max_context/],
    [JSON.stringify({ ...manifest, shards: [{ file: "../../secret", bytes: 1 }] }), /no file name/],
    [JSON.stringify({ ...manifest, shards: [{ file: "https://elsewhere/x", bytes: 1 }] }), /no file name/],
    [JSON.stringify({ ...manifest, shards: [{ file: "w", bytes: -1 }] }), /shard bytes/],
    [JSON.stringify({ ...manifest, plans: {} }), /plans/],
  ];
  for (const [json, reason] of broken) {
    assert.throws(() => parseManifest(json), (error) => error.code === "bad-manifest" && reason.test(error.message));
  }
});

/** A worker that remembers what it was asked and answers as told. */
class RecordingWorker extends EventTarget {
  requests = [];
  terminated = false;
  constructor(answer) {
    super();
    this.answer = answer;
  }
  postMessage(message) {
    this.requests.push(message);
    const answer = this.answer(message);
    if (answer) queueMicrotask(() => this.dispatchEvent(new MessageEvent("message", { data: { id: message.id, ...answer } })));
  }
  terminate() {
    this.terminated = true;
  }
}

const info = {
  contextLength: 512, kvBytesJson: '{"cache":10,"scratch":1,"total":11,"dense":20,"kvDensity":0.5}', gpuBytesJson: '{"total":1}',
  planJson: "{}", spansJson: '{"sink":0,"context":512,"spans":[[64]]}', adapterJson: '{"name":"fake"}',
};

async function create(t, { files = {}, answer, ...options } = {}) {
  const undo = fakeFetch({ "/b/manifest.json": Buffer.from(JSON.stringify(manifest)), "/b/plan-half.bin": planBytes, ...files });
  Object.defineProperty(globalThis, "navigator", {
    configurable: true, value: { gpu: { requestAdapter: async () => ({ info: { description: "fake" } }) } },
  });
  t.after(() => { undo(); delete globalThis.navigator; });
  const worker = new RecordingWorker(answer ?? ((message) => (message.kind === "load" ? { kind: "loaded", info } : undefined)));
  const engine = await createEngine({ model: "http://bundle.test/b/manifest.json", worker, ...options }).catch((error) => {
    error.worker = worker;
    throw error;
  });
  return { engine, worker };
}

test("the bundle's own plan and context are the default", async (t) => {
  const { engine, worker } = await create(t);
  const { request } = worker.requests[0];
  assert.equal(request.planName, "half");
  assert.deepEqual(Buffer.from(request.planBytes), planBytes);
  assert.equal(request.contextLength, 512);
  assert.deepEqual(request.shards, [{ url: "http://bundle.test/b/weights-000.bin", bytes: 12 }]);
  assert.deepEqual(engine.plan(), { name: "half", kvDensity: 0.5, sink: 0, spans: [[64]], json: "{}" });
  await engine.unload();
  assert.ok(worker.terminated);
});

test("dense, a plan of one's own, and a name that does not exist", async (t) => {
  const dense = await create(t, { plan: "dense" });
  assert.equal(dense.worker.requests[0].request.planBytes, undefined);
  const own = await create(t, { plan: { sink: 4, spans: [[8]] }, contextLength: 100 });
  assert.equal(own.worker.requests[0].request.planName, "custom");
  assert.deepEqual(JSON.parse(Buffer.from(own.worker.requests[0].request.planBytes)), { sink: 4, spans: [[8]] });
  await assert.rejects(create(t, { plan: "quarter" }), (error) => error.code === "bad-plan" && /dense, half/.test(error.hint));
});

test("a damaged plan file never reaches the engine", async (t) => {
  await assert.rejects(create(t, { files: { "/b/plan-half.bin": Buffer.from("plaN") } }), { code: "hash-mismatch" });
});

test("a failed load ends the worker", async (t) => {
  const answer = () => ({ kind: "failed", error: { code: "out-of-memory", message: "no" } });
  await assert.rejects(create(t, { answer }), (error) => error.code === "out-of-memory" && error.worker.terminated);
});
