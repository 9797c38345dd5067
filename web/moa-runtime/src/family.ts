/**
 * Engines that read one set of weights on one device, under plans and contexts of their own. The first one loads the weights;
 * the device goes with the last. A lost device is replaced once for all of them, by whoever meets the loss first.
 */

import type { NativeEngine, NativeModule, NativeWeights } from "./bindings.js";
import type { Tap } from "./device.js";
import type { LoadReport } from "./download.js";
import { throwIfAborted } from "./errors.js";
import { Grammars } from "./grammar.js";
import { discard, loadEngine } from "./loading.js";
import type { LoadProgress } from "./progress.js";
import type { EngineRequest, ModelRequest } from "./protocol.js";

/** What an engine that found its weights on the device took to load. */
const NOTHING: LoadReport = { fetchedBytes: 0, cachedBytes: 0, repairedChunks: 0, retries: 0 };

/** An engine that is ready. */
export interface Member {
  engine: NativeEngine;
  home: Home;
  report: LoadReport;
}

/** A device with the weights on it, for as long as an engine reads them. */
export class Home {
  readonly #tap: Tap;
  readonly #weights: NativeWeights;
  #readers = 1;

  constructor(first: NativeEngine, tap: Tap) {
    this.#tap = tap;
    this.#weights = first.weights();
  }

  /** Whether another engine can be made here. */
  get open(): boolean {
    return this.#readers > 0 && this.#weights.lost() === undefined;
  }

  async engine({ planName, planBytes, contextLength, options }: EngineRequest, signal: AbortSignal): Promise<NativeEngine> {
    this.#readers++;
    let engine: NativeEngine | undefined;
    try {
      engine = await this.#weights.engine(planName, planBytes, contextLength, options);
      throwIfAborted(signal);
      await engine.finishLoading();
      throwIfAborted(signal);
      return engine;
    } catch (error) {
      this.leave(engine);
      throw error;
    }
  }

  /** Gives an engine's memory back at once, and with the last one's the weights'. */
  leave(engine: NativeEngine | undefined): void {
    engine?.destroy();
    engine?.free();
    if (--this.#readers > 0) return;
    this.#weights.destroy();
    this.#weights.free();
    this.#tap.close();
  }
}

/** One model, in engines that share its weights. */
export class Family {
  readonly module: NativeModule;
  readonly model: ModelRequest;
  readonly grammars: Grammars;
  /** The kernels that the first engine found to be the quickest: those of all, after a lost device too. */
  #kernels: string | undefined;
  /** Where the weights are, or will be. */
  #home: Promise<Home> | undefined;

  constructor(module: NativeModule, model: ModelRequest) {
    this.module = module;
    this.model = model;
    this.grammars = new Grammars(model.grammarWasmUrl);
  }

  /** Makes an engine of the weights that are on a device, or loads them first. */
  async join(request: EngineRequest, onProgress: (progress: LoadProgress) => void, signal: AbortSignal): Promise<Member> {
    for (;;) {
      const looked = this.#home;
      // If that load has failed, this one may do better.
      const home = await looked?.catch(() => undefined);
      throwIfAborted(signal);
      // Somebody else was quicker.
      if (looked !== this.#home) continue;
      const wanted = this.#kernels === undefined ? request : { ...request, options: { ...request.options, kernels: this.#kernels } };
      if (home?.open) return { engine: await home.engine(wanted, signal), home, report: NOTHING };
      const loading = this.#load(wanted, onProgress, signal);
      this.#home = loading.then((member) => member.home);
      // Whether anybody waits for it or not.
      this.#home.catch(() => undefined);
      return loading;
    }
  }

  async #load(wanted: EngineRequest, onProgress: (progress: LoadProgress) => void, signal: AbortSignal): Promise<Member> {
    const { engine, tap, report, kernels } = await loadEngine(this.module, this.model, wanted, onProgress, signal);
    this.#kernels = kernels;
    try {
      return { engine, home: new Home(engine, tap), report };
    } catch (error) {
      discard(engine, tap);
      throw error;
    }
  }
}
