// The engine in Node.js, on the GPU through Dawn (npm package `webgpu`): the bench's protocol without a browser around it, which
// tells what a browser adds.
//
//   node web/bench/node.mjs --bundle DIR [--plan NAME] [--context 4096] [--depths 0,2048] [--tokens 128] [--repetitions 5] [--prompt N] [--kernels auto] [--features LIST]
//
// `--features` are Dawn's toggles, by commas. One JSON document goes to standard output. First tokens of an answer are part of it, to be
// compared with other runs.

import { resolve } from "node:path";
import { parseArgs } from "node:util";
import { pathToFileURL } from "node:url";

import { create, globals } from "webgpu";

const { values: given } = parseArgs({
  options: {
    bundle: { type: "string" },
    plan: { type: "string", default: "dense" },
    context: { type: "string", default: "4096" },
    depths: { type: "string", default: "0,2048" },
    tokens: { type: "string", default: "128" },
    repetitions: { type: "string", default: "5" },
    prompt: { type: "string", default: "0" },
    kernels: { type: "string", default: "auto" },
    features: { type: "string" },
  },
});
if (!given.bundle) {
  console.error("usage: node.mjs --bundle DIR [--plan NAME] [--context 4096] [--depths 0,2048] [--tokens 128] [--repetitions 5] [--prompt N] [--kernels auto] [--features LIST]");
  process.exit(1);
}
// What a browser has and Node.js has not.
Object.assign(globalThis, globals);
const flags = given.features ? [`enable-dawn-features=${given.features}`] : [];
Object.defineProperty(globalThis, "navigator", { configurable: true, value: { gpu: create(flags) } });

const { load } = await import("./contenders/moa.js");
const { reader } = await import("./prompts.mjs");
const protocol = await import("./page.js");

const bundle = resolve(given.bundle);
const { read } = reader(bundle);
globalThis.contender = await load({ manifest: pathToFileURL(`${bundle}/`), plan: given.plan, contextLength: Number(given.context), worker: false, kernels: given.kernels });
await globalThis.contender.generate({ ...read(16), maxTokens: 2 }, () => {});
const answer = (await protocol.answer(read(256), 16)).ids;
const prefill = [];
for (let round = 0; Number(given.prompt) > 0 && round < Number(given.repetitions); round++) prefill.push(await protocol.prefill(read(Number(given.prompt))));
const decode = [];
for (const depth of given.depths.split(",").map(Number)) {
  const samples = [];
  for (let round = 0; round < Number(given.repetitions); round++) samples.push(await protocol.decode(read(Math.max(depth, 1)), Number(given.tokens)));
  decode.push({ depth, samples });
  console.error(`depth ${depth}: ${samples.map(({ ms, tokens }) => (ms / tokens).toFixed(3)).join(", ")} ms per token`);
}
console.log(JSON.stringify({ plan: given.plan, describe: globalThis.contender.describe(), answer, prefill, decode }, null, 1));
// Dawn keeps the process alive.
process.exit(0);
