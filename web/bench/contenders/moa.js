// moa-runtime, under a plan of the bundle or dense, or under one window for all heads in a plan's bytes (`uniform`).

import { createEngine } from "moa-runtime";

export async function load({ manifest, plan, uniform = false, contextLength, worker, kernels }) {
  let engine = await createEngine({ model: manifest, plan, contextLength, worker, kernels, cache: "none", turnSnapshotBytes: 0 });
  if (uniform) {
    // Node.js, which reads no TypeScript, never comes here.
    const { uniformLike } = await import("../../parts/uniform.ts");
    const fork = await engine.fork({ plan: uniformLike(engine.plan(), contextLength), turnSnapshotBytes: 0 });
    await engine.unload();
    engine = fork;
  }
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
