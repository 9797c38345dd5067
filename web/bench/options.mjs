// The options of run.mjs, and what of them a model has room for. It reads no file and starts nothing.

import { parseArgs } from "node:util";

/** Tokens that a context has beyond a prompt and its answer: an engine that takes text may read a prompt as a few tokens more. */
export const SPARE = 64;

/** The protocol, that of `moa-run bench`: these are the defaults. */
const GIVEN = {
  bundle: { type: "string" },
  gguf: { type: "string" },
  onnx: { type: "string" },
  out: { type: "string" },
  built: { type: "string" },
  only: { type: "string" },
  plan: { type: "string", multiple: true, default: [] },
  prompt: { type: "string", default: "512,4096" },
  depths: { type: "string", default: "0,4096,max" },
  tokens: { type: "string", default: "128" },
  repetitions: { type: "string", default: "5" },
  threads: { type: "string", default: "2" },
  ubatch: { type: "string" },
  kernels: { type: "string", default: "auto" },
  native: { type: "string", multiple: true, default: [] },
  "moa-run": { type: "string" },
  "limit-s": { type: "string", default: "1200" },
  help: { type: "boolean", short: "h", default: false },
};

export const USAGE = `usage: run.mjs --bundle DIR --out DIR [--gguf FILE] [--onnx DIR] [--plan NAME].. [--only CONTENDER,..]
  --prompt 512,4096       tokens of the prompts whose prefill is timed
  --depths 0,4096,max     tokens in the cache before decoding is timed; max is the last depth at which all fits
  --tokens 128            tokens decoded, greedily
  --repetitions 5         of everything; the median and the spread are reported
  --plan NAME             moa's, beside its dense one; the bundle's default plan without; may be given several times.
                          uniform:NAME is one window for all heads in the bytes of that plan
  --gguf FILE             the same weights for wllama
  --onnx DIR              the same weights for transformers.js: export_onnx.py makes the folder
  --threads 2             of the CPU backends
  --ubatch N              wllama's physical batch on WebGPU; its own default without
  --built DIR             scripts and engines that another run bundled, target/bench-web there; here nothing needs to be installed then
  --kernels auto          moa's, by their name among its options; by default those that a trial at the load finds
  --moa-run FILE          the native program: it times attention's own kernels first, for the page's last chart
  --native FILE           the same from an earlier run: the JSON of \`moa-run bench --kernels --json\`; may be given several times
  --limit-s 1200          after so long a contender is given up, and its row says so`;

function whole(name, text, least) {
  const value = Number(text);
  if (!Number.isInteger(value) || value < least || text.trim() === "") {
    throw new Error(`--${name} must be ${least === 0 ? "a number of tokens" : "a positive integer"}, not \`${text}\``);
  }
  return value;
}

/** What was asked for, from the words of the command line. */
export function parse(words) {
  const { values: given } = parseArgs({ args: words, options: GIVEN });
  const number = (name) => whole(name, given[name], 1);
  return {
    help: given.help || !given.bundle || !given.out,
    asked: given.help,
    // Where things lie.
    paths: { bundle: given.bundle, gguf: given.gguf, onnx: given.onnx, out: given.out, built: given.built, moaRun: given["moa-run"], native: given.native },
    plans: given.plan,
    only: given.only?.split(","),
    options: {
      prompts: given.prompt.split(",").map((text) => whole("prompt", text, 1)),
      depths: given.depths.split(",").map((text) => (text === "max" ? text : whole("depths", text, 0))),
      tokens: number("tokens"),
      repetitions: number("repetitions"),
      threads: number("threads"),
      ubatch: given.ubatch === undefined ? undefined : number("ubatch"),
      kernels: given.kernels,
      limitMs: 1000 * number("limit-s"),
    },
  };
}

const ascending = (values) => [...new Set(values)].sort((a, b) => a - b);

/** The options with prompts and depths that the model has room for, `max` as a number, and the context that all of them need. */
export function fit(options, model) {
  const room = model.max_context - SPARE;
  const deepest = room - options.tokens;
  if (deepest < 1) throw new Error(`a context of ${model.max_context} has no room for ${options.tokens} tokens`);
  const prompts = ascending(options.prompts.filter((length) => length <= room));
  const depths = ascending(options.depths.map((depth) => (depth === "max" ? deepest : depth)).filter((depth) => depth <= deepest));
  const needed = Math.max(...prompts, ...depths.map((depth) => Math.max(depth, 1) + options.tokens)) + SPARE;
  if (!Number.isFinite(needed)) throw new Error(`no prompt and no depth fits into a context of ${model.max_context}`);
  return { ...options, prompts, depths, contextLength: Math.min(Math.ceil(needed / 64) * 64, model.max_context) };
}

/** The plan whose bytes one window for all heads shall have, where that is what a plan's name says. */
export const uniformOf = (plan) => /^uniform:(.+)$/.exec(plan)?.[1];

/** moa's plans of a run: those that were asked for, or the bundle's own choice; the dense one is always there. */
export function plansOf(asked, manifest) {
  const plans = asked.length ? asked : [manifest.default_plan ?? "dense"];
  return [...new Set(["dense", ...plans])];
}
