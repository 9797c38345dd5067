// Engines for language models in the browser side by side: one browser, one adapter, the same weights, one after another.
// Each gets a browser of its own, so that peaks of memory are its own. What an engine cannot do is a row that says so.
//
//   node web/bench/run.mjs --bundle DIR --gguf FILE --out DIR [--onnx DIR] [options]      # or: cargo xtask bench-web
//
// Results: OUT/samples.json with adapter, browser and every sample, OUT/index.html with table and chart; the table also goes to
// standard output. It times nothing before it has compared the first tokens of an answer.

import { resolve } from "node:path";
import { parseArgs } from "node:util";

import { bundleContenders, startServer } from "./server.mjs";
import { openBrowser } from "./browser.mjs";
import { CONTENDERS } from "./contenders.mjs";
import { reader } from "./prompts.mjs";
import { page as resultPage, table, write } from "./results.mjs";

/** Tokens of the answer that is compared before anything is timed. */
const ANSWER_TOKENS = 16;

const { values: given } = parseArgs({
  options: {
    bundle: { type: "string" },
    gguf: { type: "string" },
    onnx: { type: "string" },
    out: { type: "string" },
    built: { type: "string" },
    only: { type: "string" },
    plan: { type: "string", multiple: true, default: [] },
    prompt: { type: "string", default: "512" },
    depths: { type: "string", default: "0,2048" },
    tokens: { type: "string", default: "128" },
    repetitions: { type: "string", default: "5" },
    threads: { type: "string", default: "2" },
    ubatch: { type: "string" },
    kernels: { type: "string", default: "auto" },
    "limit-s": { type: "string", default: "1200" },
    help: { type: "boolean", short: "h", default: false },
  },
});
if (given.help || !given.bundle || !given.out) {
  console.error(`usage: run.mjs --bundle DIR --out DIR [--gguf FILE] [--onnx DIR] [--plan NAME].. [--only CONTENDER,..]
  --prompt 512       tokens of the prompt whose prefill is timed
  --depths 0,2048    tokens in the cache before decoding is timed
  --tokens 128       tokens decoded, greedily
  --repetitions 5    of everything; the median and the spread are reported
  --threads 2        of the CPU backends
  --ubatch N         wllama's physical batch on WebGPU; its own default without
  --built DIR        scripts and engines that another run bundled, target/bench-web there; here nothing needs to be installed then
  --kernels auto     moa's, by their name among its options; by default those that a trial at the load finds
  --limit-s 1200     after so long a contender is given up, and its row says so
contenders: ${CONTENDERS.map(({ name }) => name).join(", ")}`);
  process.exit(given.help ? 0 : 1);
}
const number = (name) => {
  const value = Number(given[name]);
  if (!Number.isInteger(value) || value < 1) throw new Error(`--${name} must be a positive integer, not \`${given[name]}\``);
  return value;
};
const options = {
  promptTokens: number("prompt"),
  depths: given.depths.split(",").map(Number),
  tokens: number("tokens"),
  repetitions: number("repetitions"),
  threads: number("threads"),
  ubatch: given.ubatch === undefined ? undefined : number("ubatch"),
  kernels: given.kernels,
  limitMs: 1000 * number("limit-s"),
};
// A depth of 0 is a prompt of one token: nothing can be decoded after none.
options.contextLength = Math.ceil((Math.max(options.promptTokens, ...options.depths) + options.tokens + 64) / 64) * 64;

const available = { bundle: given.bundle, gguf: given.gguf, onnx: given.onnx, plans: given.plan };
const chosen = CONTENDERS.filter(({ name }) => !given.only || given.only.split(",").includes(name)).flatMap((contender) => contender.rows(available, options));
if (chosen.length === 0) throw new Error("nothing to compare: see --help for the contenders and what they need");

const built = given.built ? resolve(given.built) : await bundleContenders();
const server = await startServer({ built, bundle: given.bundle, gguf: given.gguf, onnx: given.onnx });
const { read, encode } = reader(resolve(given.bundle));
const prompts = {
  warm: read(16),
  answer: read(Math.min(256, options.promptTokens)),
  prefill: Array.from({ length: options.repetitions }, () => read(options.promptTokens)),
  decode: options.depths.map((depth) => Array.from({ length: options.repetitions }, () => read(Math.max(depth, 1)))),
};
const result = { date: new Date().toISOString(), options, browser: undefined, adapter: undefined, cpus: undefined, contenders: [] };

/** After every engine, so that a run that is broken off leaves what it has. */
function save() {
  write(given.out, "samples.json", `${JSON.stringify(result, null, 1)}\n`);
  write(given.out, "index.html", resultPage(result));
}

for (const row of chosen) {
  console.error(`${row.label} ...`);
  const entry = { label: row.label, weights: row.weights, prefill: [], decode: options.depths.map((depth) => ({ depth, samples: [] })) };
  result.contenders.push(entry);
  const browser = await openBrowser(`${server.url}/bench/`);
  result.browser = browser.version;
  result.adapter = browser.adapter;
  const deadline = Date.now() + options.limitMs;
  const ask = (name, ...args) => browser.call(name, args, deadline - Date.now());
  try {
    const before = browser.memory();
    browser.watchMemory();
    Object.assign(entry, await ask("load", row.script, row.load, prompts.warm));
    const { ids, text } = await ask("answer", prompts.answer, ANSWER_TOKENS);
    entry.answer = ids.length ? ids : encode(text);
    for (const prompt of prompts.prefill) entry.prefill.push(await ask("prefill", prompt));
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
