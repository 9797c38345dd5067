// moa-runtime, under a plan of the bundle or dense.

import { createEngine } from "moa-runtime";

export async function load({ manifest, plan, contextLength }) {
  const engine = await createEngine({ model: manifest, plan, contextLength, cache: "none", turnSnapshotBytes: 0 });
  return {
    describe: () => ({ device: engine.adapter.name, kvBytes: engine.memory().kv.total, gpuBytes: engine.memory().gpu.total }),
    async generate({ ids, maxTokens }, onTokens) {
      for await (const event of engine.generate({ ids, maxTokens, stopIds: [] })) {
        if (event.kind === "tokens") onTokens(event.ids.length, event.ids);
      }
    },
  };
}
