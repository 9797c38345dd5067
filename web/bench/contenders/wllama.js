// wllama: llama.cpp in wasm, on its CPU backend or on WebGPU. It takes text, so a prompt may be a token or two longer or shorter.

import { Wllama } from "@wllama/wllama";

export async function load({ gguf, webgpu, threads, ubatch, contextLength }) {
  const log = [];
  const keep = (...words) => log.push(words.join(" "));
  const wllama = new Wllama({ default: "/bench/wllama.wasm" }, { logger: { debug: keep, log: keep, warn: keep, error: keep }, allowOffline: true });
  await wllama.loadModelFromUrl(gguf, {
    useCache: false,
    n_ctx: contextLength,
    n_threads: threads,
    n_gpu_layers: webgpu ? 999 : 0,
    ...(ubatch ? { n_ubatch: ubatch } : {}),
  });
  const onGpu = log.some((line) => /using device\s+WebGPU/i.test(line));
  // It falls back to the CPU in silence; a row of the GPU's must not hold the CPU's figures.
  if (webgpu && !onGpu) throw new Error("it chose the CPU: its log names no WebGPU device");
  return {
    describe: () => ({ device: onGpu ? "WebGPU" : "CPU", threads: wllama.getNumThreads(), ubatch: wllama.getLoadedContextInfo().n_ubatch }),
    async generate({ text, maxTokens }, onTokens) {
      const stream = await wllama.createCompletion({
        prompt: text, max_tokens: maxTokens, temperature: 0, stream: true, cache_prompt: false, ignore_eos: true, timings_per_token: true,
      });
      let told = 0;
      for await (const chunk of stream) {
        // A chunk may hold several tokens, or end in the middle of a character; the engine's own count is right.
        const count = chunk.timings?.predicted_n ?? told + 1;
        if (count > told) onTokens(count - told, undefined, chunk.choices[0]?.text);
        told = Math.max(told, count);
      }
    },
  };
}
