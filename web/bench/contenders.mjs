// Who takes part, under which conditions, and what each needs. One entry may give several rows.

import { existsSync } from "node:fs";
import { join } from "node:path";

export const CONTENDERS = [
  {
    name: "moa",
    rows: ({ plans }, { contextLength, kernels }) =>
      ["dense", ...plans].map((plan) => ({
        label: plan === "dense" ? "moa, dense" : `moa, plan ${plan}`,
        weights: "q4 and q8, lossless from the GGUF",
        script: "moa",
        load: { manifest: "/bundle/manifest.json", plan, contextLength, kernels },
      })),
  },
  {
    name: "wllama-webgpu",
    rows: ({ gguf }, { contextLength, ubatch }) =>
      gguf ? [{ label: "wllama, WebGPU", weights: "the GGUF", script: "wllama", load: { gguf: "/model.gguf", webgpu: true, threads: 1, ubatch, contextLength } }] : [],
  },
  {
    name: "wllama-cpu",
    rows: ({ gguf }, { contextLength, threads }) =>
      gguf ? [{ label: `wllama, CPU, ${threads} threads`, weights: "the GGUF", script: "wllama", load: { gguf: "/model.gguf", webgpu: false, threads, contextLength } }] : [],
  },
  // `--onnx` is a folder of exports, one folder a type: fp32, fp16, q4.
  ...[["transformers-webgpu", "webgpu", "WebGPU"], ["transformers-cpu", "wasm", "CPU"]].map(([name, device, label]) => ({
    name,
    rows: ({ onnx }) =>
      Object.entries(onnx ? exportsIn(onnx) : {}).map(([dtype, folder]) => ({
        label: `transformers.js, ${label}, ${dtype}`,
        weights: dtype === "q4" ? "an int4 quantization of its own" : `the GGUF's, widened to ${dtype}`,
        script: "transformers",
        load: { onnx: `/onnx/${folder}`, dtype, device },
      })),
  })),
];

/** The exports in a folder, by transformers.js' name of their type. */
function exportsIn(folder) {
  const files = { fp32: "model.onnx", fp16: "model_fp16.onnx", q4: "model_q4.onnx" };
  return Object.fromEntries(Object.keys(files).filter((dtype) => existsSync(join(folder, dtype, "onnx", files[dtype]))).map((dtype) => [dtype, dtype]));
}
