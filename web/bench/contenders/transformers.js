// transformers.js on an ONNX export that lies on the server: the decoder in ONNX Runtime Web, on WebGPU or in wasm.

import { AutoModelForCausalLM, Tensor, env } from "@huggingface/transformers";

export async function load({ onnx, dtype, device }) {
  env.allowRemoteModels = false;
  env.allowLocalModels = true;
  env.localModelPath = new URL(onnx.slice(0, onnx.lastIndexOf("/") + 1), location.href).href;
  env.useBrowserCache = false;
  env.backends.onnx.wasm.wasmPaths = "/bench/ort/";
  const model = await AutoModelForCausalLM.from_pretrained(onnx.slice(onnx.lastIndexOf("/") + 1), { dtype, device });
  return {
    describe: () => ({ device, dtype }),
    async generate({ ids, maxTokens }, onTokens) {
      const shape = [1, ids.length];
      let prompt = true;
      await model.generate({
        input_ids: new Tensor("int64", BigInt64Array.from(ids, BigInt), shape),
        attention_mask: new Tensor("int64", new BigInt64Array(ids.length).fill(1n), shape),
        max_new_tokens: maxTokens,
        min_new_tokens: maxTokens,
        do_sample: false,
        streamer: {
          put(batch) {
            // The prompt is told first.
            if (!prompt) onTokens(1, batch[0].map(Number));
            prompt = false;
          },
          end() {},
        },
      });
    },
  };
}
