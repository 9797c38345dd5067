// Engines that read one set of weights, in real Chromium on the random model of three layers.

import assert from "node:assert/strict";
import { rmSync } from "node:fs";
import { join } from "node:path";
import { after, before, test } from "node:test";

import { launch } from "./browser.mjs";
import { openHarness, start } from "./harness.mjs";
import { ids, tinyBundle } from "./tiny.mjs";

let folder, server, browser, page;
before(async () => {
  folder = tinyBundle();
  server = await start(join(folder, "bundle"));
  browser = await launch();
  page = await openHarness(browser, server);
}, { timeout: 120_000 });
after(async () => {
  await browser?.close();
  server?.close();
  if (folder) rmSync(folder, { recursive: true });
});

test("forks read one set of weights under plans of their own, outlive the first engine, and recover together", { timeout: 90_000 }, async () => {
  const result = await page.evaluate(async ([model, ids]) => {
    const weights = { bytes: 0, devices: [] };
    const { requestDevice } = GPUAdapter.prototype;
    GPUAdapter.prototype.requestDevice = async function (...args) {
      const device = await requestDevice.apply(this, args);
      weights.devices.push(device);
      return device;
    };
    const { createBuffer } = GPUDevice.prototype;
    GPUDevice.prototype.createBuffer = function (descriptor) {
      if (/^weights\.\d+$/.test(descriptor.label)) weights.bytes += descriptor.size;
      return createBuffer.call(this, descriptor);
    };
    const answers = async (plan, contextLength) => {
      const alone = await moa.createEngine({ model, contextLength, plan });
      const made = await tokens(alone, ids, 24);
      await alone.unload();
      return made;
    };
    const expected = { first: await answers(undefined, 512), dense: await answers("dense", 512), longer: await answers("dense", 700) };

    const first = await moa.createEngine({ model, contextLength: 512, worker: false });
    const [dense, longer] = [await first.fork({ plan: "dense" }), await first.fork({ plan: "dense", contextLength: 700 })];
    const loaded = weights.bytes;
    const together = async (...engines) => Promise.all(engines.map((engine) => tokens(engine, ids, 24)));
    const [a, b, c] = await together(first, dense, longer);
    const memory = [first, dense, longer].map((engine) => engine.memory().gpu.weights ?? 0);
    const read = [dense, longer].map(({ loadReport }) => loadReport.fetchedBytes + loadReport.cachedBytes);
    const contexts = [first, dense, longer].map((engine) => [engine.contextLength, engine.plan().name]);
    await first.unload();
    const after = await tokens(dense, [3, ...ids], 24).then(() => tokens(dense, ids, 24));
    weights.devices.at(-1).destroy();
    const again = await together(dense, longer);
    const devices = weights.devices.length;
    await dense.unload();
    await longer.unload();
    const refused = await first.fork().catch((error) => error.code);
    Object.assign(GPUAdapter.prototype, { requestDevice });
    Object.assign(GPUDevice.prototype, { createBuffer });

    // In a worker, which ends with its last engine.
    const one = await moa.createEngine({ model, contextLength: 512 });
    const two = await one.fork({ plan: "dense" });
    const inWorker = await together(one, two);
    await one.unload();
    const alive = await tokens(two, ids, 24);
    await two.unload();
    const dead = await two.logits(ids).catch((error) => error.code);
    return { expected, loaded, total: weights.bytes, devices, memory, read, contexts, a, b, c, after, again, refused, inWorker, alive, dead };
  }, [`${server.url}/manifest.json`, ids]);
  const { expected, memory, inWorker } = result;
  const bytes = memory[0];
  assert.deepEqual([result.a, result.b, result.c], [expected.first, expected.dense, expected.longer]);
  assert.deepEqual(result.contexts.map(([context]) => context), [512, 512, 700]);
  assert.deepEqual(memory, [bytes, 0, 0]);
  assert.equal(result.loaded, bytes, "one set for three engines");
  assert.deepEqual([result.after, ...result.again], [expected.dense, expected.dense, expected.longer]);
  assert.deepEqual([result.devices, result.total], [2, 2 * bytes], "and one more for the device that was lost");
  assert.equal(result.refused, "unloaded");
  assert.deepEqual([...inWorker, result.alive], [expected.first, expected.dense, expected.dense]);
  assert.equal(result.dead, "unloaded");
  assert.deepEqual(result.read, [0, 0]);
});

test("keys and values as bytes take less, and change logits a little", { timeout: 60_000 }, async () => {
  const result = await page.evaluate(async ([model, ids]) => {
    const first = await moa.createEngine({ model, contextLength: 512 });
    const bytes = await first.fork({ int8Kv: true });
    const logits = [[...await first.logits(ids)], [...await bytes.logits(ids)]];
    const caches = [first, bytes].map((engine) => engine.memory().kv.cache);
    const foreign = await bytes.restore(await first.snapshot()).catch((error) => error.code);
    const misspelt = await first.fork({ int8KV: true }).catch((error) => error.code);
    await first.unload();
    await bytes.unload();
    return { logits, caches, foreign, misspelt };
  }, [`${server.url}/manifest.json`, ids]);
  const [exact, rounded] = result.logits;
  const difference = Math.max(...exact.map((logit, id) => Math.abs(logit - rounded[id]))) / Math.max(...exact.map(Math.abs));
  console.log("caches:", result.caches.join(" and "), "bytes; logits differ by", difference.toExponential(2), "of the largest");
  assert.ok(result.caches[1] < 0.7 * result.caches[0]);
  assert.ok(difference > 0 && difference < 0.05);
  assert.deepEqual([result.foreign, result.misspelt], ["bad-argument", "unsupported-option"]);
});
