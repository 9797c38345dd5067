// What runs before the worker: the manifest, the plan's choice, the checks of small files; and importing alone.
import assert from "node:assert/strict";
import { test } from "node:test";

import { createEngine, MoaError, probe } from "../dist/index.js";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

import { parseManifest } from "../dist/manifest.js";
import { locate, openSource } from "../dist/source.js";
import { cache } from "../dist/index.js";
import { FakeFolder, fakeFetch, fakeNavigator, sha256, shardEntry } from "./fakes.mjs";

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
  shards: [shardEntry("weights-000.bin", Buffer.from("twelve bytes"), 4 << 20)],
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
    [JSON.stringify({ ...manifest, shards: [{ file: "../../secret", bytes: 1, chunk_sha256: [] }] }), /no file name/],
    [JSON.stringify({ ...manifest, shards: [{ file: "https://elsewhere/x", bytes: 1, chunk_sha256: [] }] }), /no file name/],
    [JSON.stringify({ ...manifest, shards: [{ file: "w", bytes: -1, chunk_sha256: [] }] }), /shard bytes/],
    [JSON.stringify({ ...manifest, shards: [{ file: "w", bytes: 1, chunk_sha256: ["../x"] }] }), /no checksum/],
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
  planJson: "{}", spansJson: '{"sink":0,"context":512,"spans":[[64]]}', slack: 64, adapterJson: '{"name":"fake"}',
  report: { fetchedBytes: 12, cachedBytes: 0, repairedChunks: 0, retries: 0 },
};

async function create(t, { files = {}, answer, root, fault, ...options } = {}) {
  const undo = fakeFetch({ "/b/manifest.json": Buffer.from(JSON.stringify(manifest)), "/b/plan-half.bin": planBytes, ...files }, { fault });
  const undoNavigator = fakeNavigator({ root });
  t.after(() => { undo(); undoNavigator(); });
  const worker = new RecordingWorker(answer ?? ((message) => (message.kind === "load" ? { kind: "loaded", info } : undefined)));
  const engine = await createEngine({ model: "http://bundle.test/b/manifest.json", worker, ...options }).catch((error) => {
    error.worker = worker;
    throw error;
  });
  return { engine, worker, requests: undo.requests };
}

test("the bundle's own plan and context are the default", async (t) => {
  const { engine, worker } = await create(t);
  const { request, model } = worker.requests[0];
  assert.equal(request.planName, "half");
  assert.deepEqual(Buffer.from(request.planBytes), planBytes);
  assert.equal(request.contextLength, 512);
  assert.deepEqual(model.shards, manifest.shards);
  assert.deepEqual(model.location, { kind: "url", url: "http://bundle.test/b/manifest.json" });
  assert.deepEqual(engine.plan(), { name: "half", kvDensity: 0.5, sink: 0, spans: [[64]], slack: 64, json: "{}" });
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

test("the small files come from the storage the second time, and without a network all of them do", async (t) => {
  const root = new FakeFolder();
  await create(t, { root });
  const again = await create(t, { root });
  assert.deepEqual(again.requests.map(({ path }) => path), ["/b/manifest.json"]);
  const offline = await create(t, { root, fault: () => ({ offline: true }) });
  assert.deepEqual(Buffer.from(offline.worker.requests[0].request.planBytes), planBytes);
  await assert.rejects(create(t, { root: new FakeFolder(), fault: () => ({ offline: true }) }), { code: "network" });
  await assert.rejects(create(t, { root, fault: () => ({ status: 404 }) }), { code: "network" }, "a model that is gone is gone");
});

test("a damaged small file is asked for once more, past every cache", async (t) => {
  const fault = ({ path, count }) => (path === "/b/plan-half.bin" && count === 1 ? { body: Buffer.from("plaN") } : {});
  const { requests } = await create(t, { fault });
  assert.deepEqual(requests.filter(({ path }) => path === "/b/plan-half.bin").map(({ cache }) => cache), [undefined, "reload"]);
});

test("models on this device are listed, counted and deleted", async (t) => {
  const root = new FakeFolder();
  await create(t, { root });
  const url = "http://bundle.test/b/manifest.json";
  assert.deepEqual(await cache.list(), [{ url, name: "tiny", bytes: 12, cachedBytes: 0, complete: false }]);
  const content = await (await root.getDirectoryHandle("moa-runtime")).getDirectoryHandle("content");
  const shared = manifest.shards[0].chunk_sha256[0];
  (await content.getFileHandle(shared, { create: true })).bytes = Buffer.from("twelve bytes");
  assert.deepEqual(await cache.list(), [{ url, name: "tiny", bytes: 12, cachedBytes: 12, complete: true }]);
  assert.ok(await cache.has(url));
  assert.ok(await cache.has("http://bundle.test/b/"));
  assert.ok(!(await cache.has("http://bundle.test/other/manifest.json")));
  // Another model with the same weights: they stay until both are gone.
  await create(t, { root, model: "http://bundle.test/b/manifest.json?v=2" });
  assert.equal(await cache.delete(url), 0);
  assert.ok(content.entriesByName.has(shared));
  assert.equal(await cache.delete(), 12 + planBytes.length);
  assert.deepEqual(await cache.list(), []);
});

test("the probe says what a model takes, and what of it is here", async (t) => {
  const root = new FakeFolder();
  await create(t, { root });
  const verdict = await probe("http://bundle.test/b/");
  assert.equal(verdict.ok, true);
  assert.match(verdict.message, /^tiny can run here and is a download of 0 MiB; at 512 tokens its keys and values take .* where a dense cache takes .*\.$/);
  assert.deepEqual(verdict.features, ["shader-f16"]);
  assert.equal(verdict.limits.maxBufferSize, 1 << 28);
  assert.equal(verdict.storage.quota, 1e9);
  assert.deepEqual(verdict.model.plans, [{ name: "half", contexts: [{ context: 512, kvBytes: 11, denseBytes: 20, kvDensity: 0.5, attentionDensity: 0.6 }] }]);
  const missing = await probe("http://bundle.test/nothing/");
  assert.equal(missing.ok, false);
  assert.match(missing.message, /status 404/);
});

test("what a model may be named by", () => {
  const url = (model) => locate(model).url;
  assert.equal(url("hf:org/name@v1"), "https://huggingface.co/org/name/resolve/v1/manifest.json");
  assert.equal(url("hf:org/na.me"), "https://huggingface.co/org/na.me/resolve/main/manifest.json");
  assert.equal(url(new URL("https://host/model/")), "https://host/model/manifest.json");
  assert.equal(url("https://host/model/other.json?x=1"), "https://host/model/other.json?x=1");
  for (const wrong of ["hf:name", "hf:a/b/c", "nonsense", 7, {}, null]) assert.throws(() => locate(wrong), { code: "bad-argument" });
});

/** A tar file as `tar cf` writes it. */
function tar(files) {
  const blocks = [];
  for (const [name, bytes] of Object.entries(files)) {
    const header = Buffer.alloc(512);
    header.write(name, 0);
    header.write(bytes.length.toString(8).padStart(11, "0"), 124);
    header.write("0", 156);
    header.write("ustar", 257);
    blocks.push(header, bytes, Buffer.alloc((512 - (bytes.length % 512)) % 512));
  }
  return new Blob([...blocks, Buffer.alloc(1024)]);
}

test("a tar file, a folder and a local address serve whole files and parts of them", async () => {
  const files = { "manifest.json": Buffer.from("{}"), w: Buffer.from(Array.from({ length: 700 }, (_, i) => i % 251)) };
  const folder = new FakeFolder();
  for (const [name, bytes] of Object.entries(files)) (await folder.getFileHandle(name, { create: true })).bytes = bytes;
  const local = mkdtempSync(join(tmpdir(), "moa-source-"));
  for (const [name, bytes] of Object.entries(files)) writeFileSync(join(local, name), bytes);
  const archive = tar(Object.fromEntries(Object.entries(files).map(([name, bytes]) => [`./${name}`, bytes])));
  for (const model of [archive, folder, pathToFileURL(`${local}/`)]) {
    const { source, manifest: name } = await openSource(locate(model));
    assert.deepEqual(Buffer.from(await source.read(name, {})), files["manifest.json"]);
    const { start, body } = await source.open("w", { start: 10, end: 600, total: 700 }, {});
    const part = Buffer.from(await new Response(body).arrayBuffer());
    assert.equal(start, 10);
    assert.deepEqual(part, files.w.subarray(10, 600));
    await assert.rejects(source.read("missing", {}), { code: "network", retry: false });
    await assert.rejects(source.open("w", { start: 0, end: 1, total: 701 }, {}), /wrong length/);
  }
  rmSync(local, { recursive: true });
  await assert.rejects(openSource(locate(new Blob([Buffer.alloc(600, 7)]))), { code: "bad-manifest" });
});
