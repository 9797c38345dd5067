// What kernels use beyond WebGPU's defaults, in Chromium: subgroups of 8 on lavapipe and of 4 on SwiftShader, asked of the
// adapter beside wgpu, say what the base says; features that are not there, and names of nothing, are typed errors.

import assert from "node:assert/strict";
import { rmSync } from "node:fs";
import { join } from "node:path";
import { after, before, test } from "node:test";

import { launch, openPage } from "./browser.mjs";
import { start } from "./harness.mjs";
import { ids, tinyBundle } from "./tiny.mjs";

/** Largest difference of a logit: the same sums in another order, through f16 caches. */
const TOLERANCE = 4e-3;

let folder, server;
before(async () => {
  folder = tinyBundle();
  server = await start(join(folder, "bundle"));
});
after(() => {
  server?.close();
  if (folder) rmSync(folder, { recursive: true });
});

/** The logits after a few decoded tokens and the features of the device, for each choice; the code of the error where there is one. */
async function run(options, names) {
  const browser = await launch(options);
  try {
    const page = await openPage(browser, `${server.url}/harness/`);
    await page.waitForFunction(() => globalThis.moa);
    return await page.evaluate(async ([model, ids, names]) => {
      const { requestDevice } = GPUAdapter.prototype;
      let asked;
      GPUAdapter.prototype.requestDevice = function (descriptor) {
        asked = [...(descriptor?.requiredFeatures ?? [])].sort();
        return requestDevice.call(this, descriptor);
      };
      const results = {};
      for (const kernels of names) {
        asked = undefined;
        try {
          const engine = await moa.createEngine({ model, contextLength: 256, cache: "none", worker: false, ...(kernels ? { kernels } : {}) });
          const made = [];
          for await (const event of engine.generate({ ids, maxTokens: 12, stopIds: [] })) if (event.kind === "tokens") made.push(...event.ids);
          results[kernels] = { used: engine.adapter.kernels, asked, made, logits: [...await engine.logits([...ids, ...made])] };
          await engine.unload();
        } catch ({ code, message }) {
          results[kernels] = { asked, error: `${code}: ${message}` };
        }
      }
      return results;
    }, [`${server.url}/manifest.json`, ids, names]);
  } finally {
    await browser.close();
  }
}

const difference = (a, b) => Math.max(...a.map((value, i) => Math.abs(value - b[i])));

test("subgroups of 8 say what the base says, and each device is asked for what its kernels use", { timeout: 120_000 }, async () => {
  const results = await run({}, ["base", "subgroups", "f16", "packed", "subgroups+f16+packed", "warp", ""]);
  const { base } = results;
  for (const [kernels, features] of [["base", []], ["subgroups", ["subgroups"]], ["f16", ["shader-f16"]], ["packed", []], ["subgroups+f16+packed", ["shader-f16", "subgroups"]]]) {
    const { used, asked, made, logits, error } = results[kernels];
    assert.equal(error, undefined, kernels);
    assert.equal(used, kernels);
    assert.deepEqual(asked, features, kernels);
    assert.deepEqual(made, base.made, kernels);
    assert.ok(difference(logits, base.logits) < TOLERANCE, kernels);
  }
  assert.ok(difference(results.subgroups.logits, base.logits) > 0, "other kernels ran");
  assert.match(results.warp.error, /^bad-argument: kernels: `warp`/);
  // Nobody asked: a software adapter has nothing to gain.
  assert.equal(results[""].used, "base");
});

test("subgroups of 4 do, and what SwiftShader lacks is said", { timeout: 240_000 }, async () => {
  const { base, subgroups, f16 } = await run({ swiftshader: true }, ["base", "subgroups", "f16"]);
  assert.deepEqual(subgroups.made, base.made, subgroups.error);
  assert.ok(difference(subgroups.logits, base.logits) < TOLERANCE);
  assert.deepEqual(subgroups.asked, ["subgroups"]);
  assert.match(f16.error, /^bad-argument: variant of the kernels is f16/);
});
