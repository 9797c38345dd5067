// Which kernels an engine is asked for: tried once for an adapter, an engine and a model, then remembered.
import assert from "node:assert/strict";
import { test } from "node:test";

import { loadEngine } from "../dist/loading.js";
import { FakeEngine, FakeFolder, fakeFetch, fakeModule, fakeNavigator, shardEntry } from "./fakes.mjs";

const files = { "/w": Uint8Array.from({ length: 40 }, (_, i) => i) };
const shards = [shardEntry("w", files["/w"])];
const location = { kind: "url", url: "http://bundle.test/manifest.json" };

/** Loads with these options; what the module was asked for, and whether kernels were tried. */
async function load(root, options = {}, { manifestJson = "{}", engine = new FakeEngine(), ...environment } = {}) {
  const undo = [fakeFetch(files), fakeNavigator({ root, ...environment })];
  const module = fakeModule(engine);
  try {
    const request = { planName: "p", planBytes: undefined, contextLength: 256, options };
    const { kernels } = await loadEngine(module, { location, manifestJson, shards, cache: undefined }, request, () => undefined, new AbortController().signal);
    return { kernels, asked: module.asked[0], tried: engine.calls.some(([kind]) => kind === "tune") };
  } finally {
    for (const back of undo) back();
  }
}

test("kernels are tried at the first load and remembered for the next", async () => {
  const root = new FakeFolder();
  const first = await load(root);
  assert.deepEqual(first, { kernels: "subgroups+f16", asked: { kernels: "auto", extras: ["f16"] }, tried: true });
  const second = await load(root);
  assert.deepEqual(second, { kernels: "subgroups+f16", asked: { kernels: "subgroups+f16", extras: ["f16"] }, tried: false });
  // Another model, or another adapter: tried anew.
  assert.ok((await load(root, {}, { manifestJson: "{ }" })).tried);
  assert.ok((await load(root, {}, { features: ["shader-f16", "subgroups"] })).tried);
});

test("an answer that says nothing is found again", async () => {
  const root = new FakeFolder();
  await load(root);
  const [[, folder]] = [...root.file("moa-runtime").entriesByName].filter(([name]) => name === "kernels");
  for (const file of folder.entriesByName.values()) file.bytes = Buffer.from("{ }");
  assert.ok((await load(root)).tried);
});

test("what is asked for is taken, and nothing is tried", async () => {
  const asked = await load(new FakeFolder(), { kernels: "base" });
  assert.deepEqual(asked, { kernels: "base", asked: { kernels: "base", extras: ["f16"] }, tried: false });
  const least = await load(new FakeFolder(), { defaultLimits: true });
  assert.deepEqual(least, { kernels: "auto", asked: { defaultLimits: true, kernels: "auto", extras: [] }, tried: false });
});

test("a software adapter has no answer, and without storage none is kept", async () => {
  const software = Object.assign(new FakeEngine(), { tune: async () => undefined });
  const root = new FakeFolder();
  assert.equal((await load(root, {}, { engine: software })).kernels, "auto");
  assert.equal(root.file("moa-runtime/kernels"), undefined);
  assert.ok((await load(undefined)).tried && (await load(undefined)).tried);
});

test("subgroups are asked of the adapter beside wgpu, and only where they are wanted", async () => {
  for (const [kernels, wanted] of [["auto", ["subgroups"]], ["subgroups+f16", ["subgroups"]], ["f16", []], ["base", []]]) {
    let descriptor;
    const engine = new FakeEngine();
    const undo = [fakeFetch(files), fakeNavigator({ features: ["subgroups", "shader-f16"], onDevice: (asked) => (descriptor = asked) })];
    const module = fakeModule(engine);
    const { create } = module.MoaEngine;
    // What wgpu does.
    module.MoaEngine.create = async (...args) => {
      const adapter = await navigator.gpu.requestAdapter();
      await adapter.requestDevice({ label: "moa", requiredFeatures: ["shader-f16"] });
      return create(...args);
    };
    const request = { planName: "p", planBytes: undefined, contextLength: 256, options: { kernels } };
    await loadEngine(module, { location, manifestJson: "{}", shards, cache: "none" }, request, () => undefined, new AbortController().signal);
    for (const back of undo) back();
    assert.deepEqual(descriptor, { label: "moa", requiredFeatures: ["shader-f16", ...wanted] }, kernels);
  }
});
