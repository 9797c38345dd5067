// moa-runtime, under a plan of the bundle or dense.

import { createEngine } from "moa-runtime";

export async function load({ manifest, plan, contextLength, worker, kernels }) {
  const engine = await createEngine({ model: manifest, plan, contextLength, worker, kernels, cache: "none", turnSnapshotBytes: 0 });
  return {
    // Predicted by the plan, and allocated on the device.
    describe: () => ({ device: engine.adapter.name, software: engine.adapter.software, kernels: engine.adapter.kernels, kvPredicted: engine.memory().kv.cache, kvAllocated: engine.memory().gpu.kvCache, gpuBytes: engine.memory().gpu.total }),
    async generate({ ids, maxTokens }, onTokens) {
      for await (const event of engine.generate({ ids, maxTokens, stopIds: [] })) {
        if (event.kind === "tokens") onTokens(event.ids.length, event.ids);
      }
    },
  };
}
