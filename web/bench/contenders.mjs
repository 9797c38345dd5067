// Who takes part, under which conditions, and what each needs. One entry may give several rows; without what it needs, none.

import { existsSync } from "node:fs";
import { join } from "node:path";

import { uniformOf } from "./options.mjs";

const NEEDS = {
  gguf: "--gguf was not given, the file that the bundle was compiled from",
  onnx: "no export of the same weights was given as --onnx; web/bench/export_onnx.py makes it from the GGUF file by packages from PyPI that its header names",
};

export const CONTENDERS = [
  {
    name: "moa",
    rows: ({ plans }, { contextLength, kernels }) =>
      plans.map((name) => {
        const like = uniformOf(name);
        const plan = like ?? name;
        const kind = like ? "one window in the bytes of " : "plan ";
        return {
          label: plan === "dense" ? "moa, dense" : `moa, ${kind}${plan}`,
          weights: "q4 and q8, lossless from the GGUF",
          script: "moa",
          load: { manifest: "/bundle/manifest.json", plan, uniform: like !== undefined, contextLength, kernels },
        };
      }),
  },
  {
    name: "wllama-webgpu",
    needs: NEEDS.gguf,
    rows: ({ gguf }, { contextLength, ubatch }) =>
      gguf ? [{ label: "wllama, WebGPU", weights: "the GGUF", script: "wllama", load: { gguf: "/model.gguf", webgpu: true, threads: 1, ubatch, contextLength } }] : [],
  },
  {
    name: "wllama-cpu",
    needs: NEEDS.gguf,
    rows: ({ gguf }, { contextLength, threads }) =>
      gguf ? [{ label: `wllama, CPU, ${threads} threads`, weights: "the GGUF", script: "wllama", load: { gguf: "/model.gguf", webgpu: false, threads, contextLength } }] : [],
  },
  // `--onnx` is a folder of exports, one folder a type: fp32, fp16, q4.
  ...[["transformers-webgpu", "webgpu", "WebGPU"], ["transformers-cpu", "wasm", "CPU"]].map(([name, device, label]) => ({
    name,
    needs: NEEDS.onnx,
    rows: ({ onnx }) =>
      Object.entries(onnx ? exportsIn(onnx) : {}).map(([dtype, folder]) => ({
        label: `transformers.js, ${label}, ${dtype}`,
        weights: dtype === "q4" ? "an int4 quantization of its own" : `the GGUF's, widened to ${dtype}`,
        script: "transformers",
        load: { onnx: `/onnx/${folder}`, dtype, device },
      })),
  })),
];

/** The rows of those that were asked for (`only`, or all), and those that are left out for want of something. */
export function choose(only, available, options) {
  const unknown = only?.find((name) => !CONTENDERS.some((contender) => contender.name === name));
  if (unknown !== undefined) throw new Error(`no contender is called \`${unknown}\`; there are ${CONTENDERS.map(({ name }) => name).join(", ")}`);
  const all = CONTENDERS.filter(({ name }) => !only || only.includes(name)).map(({ name, needs, rows }) => ({ name, why: needs, rows: rows(available, options) }));
  return { rows: all.flatMap(({ rows }) => rows), leftOut: all.filter(({ rows }) => rows.length === 0).map(({ name, why }) => ({ name, why })) };
}

/** The exports in a folder, by transformers.js' name of their type. */
function exportsIn(folder) {
  const files = { fp32: "model.onnx", fp16: "model_fp16.onnx", q4: "model_q4.onnx" };
  return Object.fromEntries(Object.keys(files).filter((dtype) => existsSync(join(folder, dtype, "onnx", files[dtype]))).map((dtype) => [dtype, dtype]));
}
