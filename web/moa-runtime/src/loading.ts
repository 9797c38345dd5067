/** A bundle's weights onto a device: what a first load does, and what is done again when a device is lost. */

import type { NativeEngine, NativeModule } from "./bindings.js";
import { type Tap, tapped } from "./device.js";
import { type LoadReport, downloadShards } from "./download.js";
import { throwIfAborted } from "./errors.js";
import type { LoadProgress } from "./progress.js";
import { ProgressMeter } from "./progress.js";
import type { EngineRequest, ModelRequest } from "./protocol.js";
import { openSource } from "./source.js";
import { openStore } from "./store.js";

/** An engine that is ready, and its device. */
export interface Loaded {
  engine: NativeEngine;
  tap: Tap;
  report: LoadReport;
}

/** Makes the engine while the first bytes come, and resolves when every byte was checked and uploaded. */
export async function loadEngine(
  module: NativeModule,
  model: ModelRequest,
  wanted: EngineRequest,
  onProgress: (progress: LoadProgress) => void,
  signal: AbortSignal,
): Promise<Loaded> {
  const { shards, manifestJson, device } = model;
  const { planName, planBytes, contextLength, options } = wanted;
  const total = shards.reduce((sum, shard) => sum + shard.bytes, 0);
  const meter = new ProgressMeter(total, onProgress);
  meter.at("device", 0);
  const failed = new AbortController();
  // Never more buffers than shards: a buffer holds several.
  const making = tapped(device, new Set(shards.map((_, buffer) => `weights.${buffer}`)), () =>
    module.MoaEngine.create(manifestJson, planName, planBytes, contextLength, options),
  );
  // An engine that cannot be made ends the download.
  making.catch(() => failed.abort());
  try {
    const [{ source }, store] = await Promise.all([openSource(model.location), openStore(model.cache)]);
    const report = await downloadShards({
      shards,
      chunkBytes: module.chunkBytes(),
      source,
      store,
      sink: async (shard, offset, bytes) => {
        const [engine, tap] = await making;
        if (await writeChunk(tap, engine.chunkPlaces(shard, offset), bytes)) engine.acceptChunk(shard, offset);
        else engine.writeShard(shard, offset, bytes);
      },
      onBytes: (loaded, report) => meter.at("download", loaded, report),
      signal: AbortSignal.any([signal, failed.signal]),
      ...(model.patience ? { patience: model.patience } : {}),
    });
    const [engine, tap] = await making;
    meter.at("warmup", total, report);
    await engine.finishLoading();
    throwIfAborted(signal);
    meter.at("ready", total, report);
    return { engine, tap, report };
  } catch (error) {
    meter.end();
    // An engine that was made all the same, or will be, is not wanted any more.
    void making.then(([engine, tap]) => discard(engine, tap), () => undefined);
    throwIfAborted(signal);
    // If it was the engine that could not be made, its reason is the one to tell.
    await making;
    throw error;
  }
}

/** Writes a chunk where it belongs; false where a buffer was not caught. */
async function writeChunk(tap: Tap, places: Uint32Array, bytes: Uint8Array): Promise<boolean> {
  let from = 0;
  for (let place = 0; place < places.length; place += 3) {
    const [buffer = 0, at = 0, length = 0] = places.subarray(place, place + 3);
    if (!(await tap.write(`weights.${buffer}`, at, bytes.subarray(from, from + length)))) return false;
    from += length;
  }
  return true;
}

/** Gives an engine's memory back at once. */
export function discard(engine: NativeEngine, tap: Tap): void {
  engine.destroy();
  engine.free();
  tap.close();
}
