// A random model of three layers on SwiftShader, which has neither f16 nor fast barriers: what any WebGPU device can do.
// Its bundle has no tokenizer, so it serves token ids alone. The logits are compared with the compiler's CPU path.

import assert from "node:assert/strict";
import { readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { after, before, test } from "node:test";

import { launch, openPage } from "./browser.mjs";
import { start } from "./harness.mjs";
import { compile, ids, tinyBundle } from "./tiny.mjs";

/** Largest difference of a logit (their root mean square is 2.5): K and V are f16 in the browser and f32 on the CPU. Measured: 0.027. */
const TOLERANCE = 0.05;

let folder, server, browser, page;
before(async () => {
  folder = tinyBundle();
  writeFileSync(join(folder, "ids.json"), JSON.stringify(ids));
  server = await start(join(folder, "bundle"));
  browser = await launch({ swiftshader: true });
  page = await openPage(browser, `${server.url}/harness/`);
  await page.waitForFunction(() => globalThis.moa);
}, { timeout: 120_000 });
after(async () => {
  await browser?.close();
  server?.close();
  if (folder) rmSync(folder, { recursive: true });
});

/** The last row of the tensor `logits` in a safetensors file. */
function lastLogits(file) {
  const bytes = readFileSync(file);
  const headerLength = Number(bytes.readBigUInt64LE(0));
  const { logits } = JSON.parse(bytes.subarray(8, 8 + headerLength).toString());
  const [rows, columns] = logits.shape;
  const start = 8 + headerLength + logits.data_offsets[0] + (rows - 1) * columns * 4;
  return Array.from({ length: columns }, (_, i) => bytes.readFloatLE(start + 4 * i));
}

function cpuLogits(planName) {
  const out = join(folder, "logits.safetensors");
  compile("logits", join(folder, "bundle"), "--ids", join(folder, "ids.json"), "--plan", planName, "--context", "128", "--out", out);
  return lastLogits(out);
}

const difference = (a, b) => Math.max(...a.map((value, i) => Math.abs(value - b[i])));

test("logits are those of the CPU, under the plan and dense, and the plan matters", { timeout: 300_000 }, async () => {
  const default_plan = server.manifest.default_plan;
  const inBrowser = await page.evaluate(async ([model, ids]) => {
    const logits = {};
    for (const plan of [undefined, "dense"]) {
      const engine = await moa.createEngine({ model, contextLength: 128, ...(plan ? { plan } : {}) });
      logits[plan ?? "plan"] = [...await engine.logits(ids)];
      await engine.unload();
    }
    return logits;
  }, [`${server.url}/manifest.json`, ids]);
  const planned = difference(inBrowser.plan, cpuLogits(default_plan));
  const dense = difference(inBrowser.dense, cpuLogits("dense"));
  const between = difference(inBrowser.plan, inBrowser.dense);
  console.log(`largest difference: plan ${planned.toExponential(2)}, dense ${dense.toExponential(2)}; plan against dense ${between.toExponential(2)}`);
  assert.ok(planned < TOLERANCE && dense < TOLERANCE);
  assert.ok(between > 4 * TOLERANCE, "the comparison could see a wrong mask");
});
