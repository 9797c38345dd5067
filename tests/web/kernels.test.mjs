// What kernels use beyond WebGPU's defaults, in Chromium: subgroups of 8 on lavapipe and of 4 on SwiftShader, asked of the
// adapter beside wgpu, say what the base says; features that are not there, and names of nothing, are typed errors. And the
// kernels that GPUs run, which software adapters by themselves do not.

import assert from "node:assert/strict";
import { rmSync } from "node:fs";
import { join } from "node:path";
import { after, before, test } from "node:test";

import { launch, openPage } from "./browser.mjs";
import { start } from "./harness.mjs";
import { ids, tinyBundle, vocab_size } from "./tiny.mjs";

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

/** Each variant's answer by the kernels of GPUs: its tokens, and the logarithm of every token's probability before each. */
async function answers(server, names, maxTokens) {
  const browser = await launch({});
  try {
    const page = await openPage(browser, `${server.url}/harness/`);
    await page.waitForFunction(() => globalThis.moa);
    return await page.evaluate(async ([model, ids, names, maxTokens, vocab]) => {
      const results = {};
      for (const [name, options] of names) {
        const engine = await moa.createEngine({ model, contextLength: 256, cache: "none", worker: false, ...options });
        const steps = [];
        for await (const event of engine.generate({ ids, maxTokens, stopIds: [], logprobs: vocab })) {
          if (event.kind !== "tokens") continue;
          for (const { id, top } of event.logprobs) steps.push({ id, logprobs: top.sort((a, b) => a.id - b.id).map(({ logprob }) => logprob) });
        }
        results[name] = { used: engine.adapter.kernels, steps };
        await engine.unload();
      }
      return results;
    }, [`${server.url}/manifest.json`, ids, names, maxTokens, vocab_size]);
  } finally {
    await browser.close();
  }
}

/** How far apart, as a part of the norm. */
function distance(actual, expected) {
  const square = (sum, value) => sum + value * value;
  return Math.sqrt(actual.map((value, i) => value - expected[i]).reduce(square, 0) / expected.reduce(square, 0));
}

test("the kernels of GPUs, as Tint compiles them, say what those of software adapters say, in every variant", { timeout: 120_000 }, async () => {
  const folder = tinyBundle({ quant: "q4", wide: true });
  const server = await start(join(folder, "bundle"));
  try {
    // How far logits may be in the prefill and in decoding; 0 where the variant changes nothing in it.
    const variants = [
      ["base", 1e-4, 1e-4], ["subgroups", 1e-4, 1e-4], ["f16", 1e-2, 1e-2], ["dp4a", 3e-2, 3e-2], ["packed", 0, 3e-2], ["subgroups+dp4a+packed", 3e-2, 3e-2],
    ];
    const names = [["separate", { kernels: "base" }], ...variants.map(([kernels]) => [kernels, { kernels, fused: true }])];
    const { separate, ...results } = await answers(server, names, 8);
    for (const [kernels, inPrefill, inDecode] of variants) {
      const { used, steps } = results[kernels];
      const expected = (kernels === "base" ? separate : results.base).steps;
      assert.equal(used, kernels);
      // As far as the tokens before are the same.
      const same = steps.findIndex(({ id }, i) => id !== expected[i].id);
      const compared = same < 0 ? steps.length : same + 1;
      assert.ok(compared >= 3, `${kernels}: ${compared} steps`);
      const distances = steps.slice(0, compared).map(({ logprobs }, i) => distance(logprobs, expected[i].logprobs));
      console.log(`${kernels}: ${distances.map((d) => d.toExponential(1)).join(" ")}`);
      for (const [step, far] of distances.entries()) {
        const most = step === 0 ? inPrefill : inDecode;
        assert.ok(far <= most, `${kernels}, step ${step}: ${far}`);
        assert.ok(most === 0 || far > 0, `${kernels}, step ${step}: other kernels ran`);
      }
    }
  } finally {
    server.close();
    rmSync(folder, { recursive: true });
  }
});
