/** A bundle's weights onto a device: what a first load does, and what is done again when a device is lost. */

import type { NativeEngine, NativeModule, NativeOptions } from "./bindings.js";
import { type Tap, tapped } from "./device.js";
import { type LoadReport, downloadShards } from "./download.js";
import { throwIfAborted } from "./errors.js";
import { answerPath, extrasHere, rememberKernels, rememberedKernels } from "./kernels.js";
import type { LoadProgress } from "./progress.js";
import { ProgressMeter } from "./progress.js";
import type { EngineRequest, ModelRequest } from "./protocol.js";
import { openSource } from "./source.js";
import { type Store, openStore } from "./store.js";

interface Kernels {
  kernels: string;
  extras: string[];
  path: string;
}

/** An engine that is ready, and its device. */
export interface Loaded {
  engine: NativeEngine;
  tap: Tap;
  report: LoadReport;
  /** The kernels that it runs, or "auto" where there was no use in trying. */
  kernels: string;
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
  const opening = openStore(model.cache);
  const choosing = chooseKernels(module, model, options, opening);
  const making = choosing.then(({ kernels, extras }) =>
    tapped(
      device,
      {
        // Never more buffers than shards: a buffer holds several.
        labels: new Set(shards.map((_, buffer) => `weights.${buffer}`)),
        features: extras.filter((name) => name === "subgroups" && (kernels === "auto" || kernels.startsWith(name))),
      },
      () => module.MoaEngine.create(manifestJson, planName, planBytes, contextLength, { ...options, kernels, extras }),
    ),
  );
  // An engine that cannot be made ends the download.
  making.catch(() => failed.abort());
  try {
    const [{ source }, store] = await Promise.all([openSource(model.location), opening]);
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
    const { extras, path, ...chosen } = await choosing;
    let { kernels } = chosen;
    if (kernels === "auto" && extras.length > 0) {
      kernels = (await engine.tune()) ?? kernels;
      if (store && kernels !== "auto") await rememberKernels(store, path, kernels);
      throwIfAborted(signal);
    }
    meter.at("ready", total, report);
    return { engine, tap, report, kernels };
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

/** The kernels that were asked for, or those of an earlier trial, else "auto"; what the platform has; where the answer is kept. */
async function chooseKernels(
  module: NativeModule,
  { device, manifestJson }: ModelRequest,
  options: NativeOptions,
  opening: Promise<Store | undefined>,
): Promise<Kernels> {
  const here = await extrasHere(device, options.powerPreference);
  const extras = options.defaultLimits ? [] : here.extras;
  const path = await answerPath(here.adapter, module.version(), manifestJson);
  if (options.kernels !== undefined && options.kernels !== "auto") return { kernels: options.kernels, extras, path };
  const store = extras.length > 0 ? await opening : undefined;
  return { kernels: (store && (await rememberedKernels(store, path))) ?? "auto", extras, path };
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
