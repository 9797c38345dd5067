// What others have published of engines that cannot be among the rows. Nothing here was measured by this bench.

/** Decoded tokens a second, as the WebLLM paper has them: from two texts that quote its table and agree. */
const WEBLLM = {
  title: "WebLLM: A High-Performance In-Browser LLM Inference Engine",
  url: "https://arxiv.org/abs/2412.15803",
  version: "arXiv:2412.15803v2",
  device: "Apple M3 Max",
  browser: "Chrome Canary 133",
  rows: [
    { model: "Llama-3.1-8B", weights: "4 bits, q4f16", webllm: 41.1, native: 57.7 },
    { model: "Phi-3.5-mini", weights: "4 bits, q4f16", webllm: 71.1, native: 89.3 },
  ],
};

/** Why WebLLM is no row, and the paragraph's figures. */
export function webllm() {
  const { rows, ...source } = WEBLLM;
  return {
    why: `WebLLM is compared by published figures only: MLC's compiled model libraries are in no package registry, so it could not be run here.`,
    caveat: `Other models on another device, and not this protocol: they say nothing about who is quicker.`,
    header: ["model", "weights", "device, browser", "WebLLM, tokens/s", "the same by native MLC-LLM, tokens/s"],
    lines: rows.map(({ model, weights, webllm: browser, native }) => [model, weights, `${source.device}, ${source.browser}`, browser, native]),
    source,
  };
}
