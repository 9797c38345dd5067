// Engines for language models in the browser side by side: one browser, one adapter, the same weights, one after another.
// Each gets a browser of its own, so that peaks of memory are its own. What an engine cannot do is a row that says so.
//
//   node web/bench/run.mjs --bundle DIR --gguf FILE --out DIR [--onnx DIR] [options]      # or: cargo xtask bench-web
//
// Results: OUT/samples.json with adapter, browser and every sample, OUT/index.html with table and charts; the table also goes to
// standard output. It times nothing before it has compared the first tokens of an answer.

import { readFileSync } from "node:fs";
import { availableParallelism, cpus } from "node:os";
import { join, resolve } from "node:path";

import { bundleContenders, startServer } from "./server.mjs";
import { describeBrowser, openBrowser } from "./browser.mjs";
import { CONTENDERS, choose } from "./contenders.mjs";
import { readNative, timeNative } from "./native.mjs";
import { SPARE, USAGE, fit, parse, plansOf, uniformOf } from "./options.mjs";
import { reader } from "./prompts.mjs";
import { page as resultPage, table, write } from "./results.mjs";

/** Tokens of the answer that is compared before anything is timed. */
const ANSWER_TOKENS = 16;

const { help, asked, paths, plans: askedPlans, only, options: given } = parse(process.argv.slice(2));
if (help) {
  console.error(`${USAGE}\ncontenders: ${CONTENDERS.map(({ name }) => name).join(", ")}`);
  process.exit(asked ? 0 : 1);
}
const manifest = JSON.parse(readFileSync(join(paths.bundle, "manifest.json"), "utf8"));
const options = fit(given, manifest.model);
const plans = plansOf(askedPlans, manifest);
const { rows: chosen, leftOut } = choose(only, { ...paths, plans }, options);
for (const { name, why } of leftOut) console.error(`${name} is left out: ${why}`);
if (chosen.length === 0) throw new Error("nothing to compare: see --help for the contenders and what they need");

const built = paths.built ? resolve(paths.built) : await bundleContenders();
const server = await startServer({ built, bundle: paths.bundle, gguf: paths.gguf, onnx: paths.onnx });
const { read, encode } = reader(resolve(paths.bundle));
const repeated = (length) => Array.from({ length: options.repetitions }, () => read(length));
const prompts = {
  warm: read(16),
  answer: read(Math.min(256, ...options.prompts, options.contextLength - SPARE)),
  prefill: options.prompts.map(repeated),
  // Nothing can be decoded after nothing: a depth of 0 is a prompt of one token.
  decode: options.depths.map((depth) => repeated(Math.max(depth, 1))),
};
const { version, adapter } = await describeBrowser(`${server.url}/bench/`);
const result = {
  date: new Date().toISOString(),
  model: manifest.name,
  options,
  browser: version,
  adapter,
  cpus: { count: availableParallelism(), model: cpus()[0]?.model },
  leftOut,
  native: paths.native.map(readNative),
  contenders: [],
};

/** After every engine, so that a run that is broken off leaves what it has. */
function save() {
  write(paths.out, "samples.json", `${JSON.stringify(result, null, 1)}\n`);
  write(paths.out, "index.html", resultPage(result));
}

if (paths.moaRun && chosen.some(({ script }) => script === "moa")) {
  // The native program makes no plans.
  for (const plan of plans.filter((name) => !uniformOf(name))) {
    console.error(`attention's kernels on native wgpu, ${plan} ...`);
    const timed = await timeNative(paths.moaRun, paths.bundle, plan, options);
    result.native.push(timed);
    console.error(`  ${timed.failed ?? timed.depths.map(({ depth, ms }) => `depth ${depth}: ${ms.toPrecision(3)} ms`).join(", ")}`);
  }
}

for (const row of chosen) {
  console.error(`${row.label} ...`);
  const entry = { label: row.label, weights: row.weights, prefill: options.prompts.map((length) => ({ length, samples: [] })), decode: options.depths.map((depth) => ({ depth, samples: [] })) };
  result.contenders.push(entry);
  const browser = await openBrowser(`${server.url}/bench/`);
  const deadline = Date.now() + options.limitMs;
  const ask = (name, ...args) => browser.call(name, args, deadline - Date.now());
  try {
    const before = browser.memory();
    browser.watchMemory();
    Object.assign(entry, await ask("load", row.script, row.load, prompts.warm));
    const { ids, text } = await ask("answer", prompts.answer, ANSWER_TOKENS);
    entry.answer = ids.length ? ids : encode(text);
    for (const [at, { samples }] of entry.prefill.entries()) {
      for (const prompt of prompts.prefill[at]) samples.push(await ask("prefill", prompt));
    }
    for (const [at, { depth, samples }] of entry.decode.entries()) {
      for (const prompt of prompts.decode[at]) samples.push(await ask("decode", prompt, options.tokens));
      console.error(`  depth ${depth}: ${samples.map(({ ms, tokens }) => (ms / tokens).toFixed(1)).join(", ")} ms per token`);
    }
    entry.memory = { before, peak: browser.peakMemory() };
  } catch (error) {
    entry.failed = String(error?.message ?? error).split("\n")[0];
    entry.memory = { peak: browser.peakMemory() };
    console.error(`  ${entry.failed}`);
  }
  await browser.close();
  save();
}
server.close();

console.log(table(result));
