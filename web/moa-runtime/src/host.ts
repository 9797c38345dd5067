/**
 * The worker's side of the protocol: owns the engine, runs one request at a time, and turns every failure into a
 * typed answer. It does not know that it sits in a worker: any port will do.
 */

import type { NativeEngine, NativeModule } from "./bindings.js";
import { downloadShards } from "./download.js";
import { MoaError, throwIfAborted } from "./errors.js";
import { ProgressMeter } from "./progress.js";
import type { Answer, LoadedInfo, LoadRequest, Port, Request } from "./protocol.js";
import { Session } from "./session.js";

/** Starts the wasm module; `wasmUrl` where it does not lie beside its script. */
export type StartModule = (wasmUrl: string | undefined) => Promise<NativeModule>;

/** Serves requests that come through `port`. */
export function attachHost(port: Port, startModule: StartModule): void {
  const host = new Host(port, startModule);
  port.addEventListener("message", (event) => host.receive(event.data as Request));
}

class Host {
  readonly #port: Port;
  readonly #startModule: StartModule;
  readonly #running = new Map<number, AbortController>();
  /** Ends when all earlier requests have: an engine is one sequence. */
  #queue: Promise<void> = Promise.resolve();
  #engine: NativeEngine | undefined;
  #session: Session | undefined;

  constructor(port: Port, startModule: StartModule) {
    this.#port = port;
    this.#startModule = startModule;
  }

  receive(request: Request): void {
    if (request.kind === "abort") {
      this.#running.get(request.id)?.abort();
      return;
    }
    const controller = new AbortController();
    this.#running.set(request.id, controller);
    this.#queue = this.#queue.then(async () => {
      try {
        await this.#run(request, controller.signal);
      } catch (error) {
        this.#post({ kind: "failed", id: request.id, error: MoaError.from(error).fields() });
      } finally {
        this.#running.delete(request.id);
      }
    });
  }

  async #run(request: Exclude<Request, { kind: "abort" }>, signal: AbortSignal): Promise<void> {
    const { id } = request;
    switch (request.kind) {
      case "load": {
        const info = await this.#load(id, request.request, signal);
        return this.#post({ kind: "loaded", id, info });
      }
      case "generate": {
        const { reason, stats } = await this.#loaded().generate(
          request.request,
          {
            onPrefill: (done, total) => this.#post({ kind: "prefilled", id, done, total }),
            onTokens: (ids) => this.#post({ kind: "tokens", id, ids }),
          },
          signal,
        );
        return this.#post({ kind: "finished", id, reason, stats });
      }
      case "logits": {
        const logits = await this.#loaded().logits(request.ids, signal);
        return this.#post({ kind: "logits", id, logits }, [logits.buffer]);
      }
    }
  }

  async #load(id: number, request: LoadRequest, signal: AbortSignal): Promise<LoadedInfo> {
    if (this.#engine) throw new MoaError("bad-argument", "this worker holds an engine already");
    const total = request.shards.reduce((sum, shard) => sum + shard.bytes, 0);
    const meter = new ProgressMeter(total, (progress) => this.#post({ kind: "progress", id, progress }));
    meter.at("device", 0);
    const module = await this.#startModule(request.wasmUrl);
    throwIfAborted(signal);
    const { manifestJson, planName, planBytes, contextLength, options } = request;
    const engine = await module.MoaEngine.create(manifestJson, planName, planBytes, contextLength, options);
    this.#engine = engine;
    try {
      let loaded = 0;
      meter.at("download", 0);
      await downloadShards(
        request.shards,
        module.chunkBytes(),
        (shard, offset, bytes) => engine.writeShard(shard, offset, bytes),
        (fetched) => meter.at("download", (loaded += fetched)),
        signal,
      );
      meter.at("warmup", loaded);
      await engine.finishLoading();
      throwIfAborted(signal);
      meter.at("ready", loaded);
    } catch (error) {
      this.#engine = undefined;
      engine.destroy();
      engine.free();
      throw error;
    }
    this.#session = new Session(engine, module.maxDecodeBatch());
    return {
      contextLength: engine.context,
      kvBytesJson: engine.kvBytes(),
      gpuBytesJson: engine.gpuBytes(),
      planJson: engine.planJson(),
      spansJson: engine.spansJson(),
      adapterJson: engine.adapterJson(),
    };
  }

  #loaded(): Session {
    if (!this.#session) throw new MoaError("unloaded", "the engine is not loaded");
    return this.#session;
  }

  #post(answer: Answer, transfer: Transferable[] = []): void {
    this.#port.postMessage(answer, transfer);
  }
}
