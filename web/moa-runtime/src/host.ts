/**
 * The worker's side of the protocol: owns the engine, runs one request at a time, and turns every failure into a
 * typed answer. A lost device is replaced and the request goes on. It does not know that it sits in a worker: any
 * port will do.
 */

import type { NativeModule } from "./bindings.js";
import { MoaError, throwIfAborted } from "./errors.js";
import { Grammars } from "./grammar.js";
import { sha256Hex } from "./hash.js";
import { type Loaded, discard, loadEngine } from "./loading.js";
import type { Answer, LoadedInfo, LoadRequest, Port, Request } from "./protocol.js";
import { type GenerateRequest, Session } from "./session.js";

/** Starts the wasm module; `wasmUrl` where it does not lie beside its script. */
export type StartModule = (wasmUrl: string | undefined) => Promise<NativeModule>;

/** Serves requests that come through `port`. */
export function attachHost(port: Port, startModule: StartModule): void {
  const host = new Host(port, startModule);
  port.addEventListener("message", (event) => host.receive(event.data as Request));
}

/** Tokens that may be on their way to a reader that has not asked for them: half of what can be taken back exactly. */
const MOST_UNREAD = 32;
/** Devices that one request may lose. */
const MOST_RECOVERIES = 3;
/** A device's other errors may come a little before the word that it is lost. */
const LOSS_MS = 50;

type Work = Exclude<Request, { kind: "abort" | "taken" }>;

/** A request that runs. */
interface Running {
  controller: AbortController;
  unread: number;
  wake: (() => void) | undefined;
}

interface Ready extends Loaded {
  module: NativeModule;
  request: LoadRequest;
  session: Session;
  grammars: Grammars;
  /** Hash of what a snapshot of it belongs to. */
  of: string;
}

class Host {
  readonly #port: Port;
  readonly #startModule: StartModule;
  readonly #running = new Map<number, Running>();
  /** Ends when all earlier requests have: an engine is one sequence. */
  #queue: Promise<void> = Promise.resolve();
  #ready: Ready | undefined;

  constructor(port: Port, startModule: StartModule) {
    this.#port = port;
    this.#startModule = startModule;
  }

  receive(request: Request): void {
    const running = this.#running.get(request.id);
    if (request.kind === "abort") {
      running?.controller.abort();
      running?.wake?.();
      return;
    }
    if (request.kind === "taken") {
      if (!running) return;
      running.unread -= request.tokens;
      running.wake?.();
      return;
    }
    const started: Running = { controller: new AbortController(), unread: 0, wake: undefined };
    this.#running.set(request.id, started);
    this.#queue = this.#queue.then(async () => {
      try {
        await this.#run(request, started);
      } catch (error) {
        this.#post({ kind: "failed", id: request.id, error: MoaError.from(error).fields() });
      } finally {
        this.#running.delete(request.id);
      }
    });
  }

  async #run(request: Work, running: Running): Promise<void> {
    const { id } = request;
    const { signal } = running.controller;
    switch (request.kind) {
      case "load": {
        const info = await this.#load(id, request.request, signal);
        return this.#post({ kind: "loaded", id, info });
      }
      case "generate":
        return this.#generate(id, request.request, running);
      case "logits": {
        const logits = await this.#recovering(id, signal, (session) => session.logits(request.ids, signal));
        return this.#post({ kind: "logits", id, logits }, [logits.buffer]);
      }
      case "snapshot": {
        const { session, of } = this.#loaded();
        const saved = await this.#telling(() => session.save());
        const layers = saved.layers.map(({ buffer }) => buffer as ArrayBuffer);
        return this.#post({ kind: "snapshot", id, snapshot: { version: 1, of, ...saved } }, layers);
      }
      case "restore": {
        const { snapshot } = request;
        if (snapshot.version !== 1 || snapshot.of !== this.#loaded().of) {
          throw new MoaError("bad-argument", "the snapshot belongs to another model, plan or context length");
        }
        await this.#recovering(id, signal, (session) => session.restore(snapshot));
        return this.#post({ kind: "done", id });
      }
      case "unload": {
        if (this.#ready) {
          this.#ready.session.close();
          discard(this.#ready.engine, this.#ready.tap);
        }
        this.#ready = undefined;
        return this.#post({ kind: "done", id });
      }
    }
  }

  async #load(id: number, request: LoadRequest, signal: AbortSignal): Promise<LoadedInfo> {
    this.#post({ kind: "hello", id });
    if (this.#ready) throw new MoaError("bad-argument", "this worker holds an engine already");
    const module = await this.#startModule(request.wasmUrl);
    throwIfAborted(signal);
    const loaded = await loadEngine(module, request, (progress) => this.#post({ kind: "progress", id, progress }), signal);
    const { engine, report } = loaded;
    const spansJson = engine.spansJson();
    const kvBytesJson = engine.kvBytes();
    const of = await sha256Hex(new TextEncoder().encode(`${request.manifestJson}\n${spansJson}`));
    const turnSnapshotBytes = request.turnSnapshotBytes ?? 2 * (JSON.parse(kvBytesJson) as { cache: number }).cache;
    const grammars = new Grammars(request.grammarWasmUrl);
    this.#ready = {
      ...loaded, module, of,
      request: { ...request, turnSnapshotBytes },
      grammars,
      session: new Session(engine, module.maxDecodeBatch(), turnSnapshotBytes, grammars),
    };
    return {
      contextLength: engine.context,
      kvBytesJson,
      gpuBytesJson: engine.gpuBytes(),
      planJson: engine.planJson(),
      spansJson,
      slack: engine.slack,
      adapterJson: engine.adapterJson(),
      report,
    };
  }

  async #generate(id: number, request: GenerateRequest, running: Running): Promise<void> {
    const { signal } = running.controller;
    const made: number[] = [];
    let recoveries = -1;
    const { reason, stats } = await this.#recovering(id, signal, (session) => {
      recoveries++;
      // Draws belong to places of the text: the same seed goes on as if nothing had happened.
      const left: GenerateRequest = made.length === 0 ? request : {
        ...request,
        ids: [...request.ids, ...made],
        maxTokens: request.maxTokens - made.length,
        answered: made.length,
      };
      return session.generate(
        left,
        {
          onPrefill: (done, total) => this.#post({ kind: "prefilled", id, done, total }),
          onTokens: async (ids, logprobs) => {
            made.push(...ids);
            running.unread += ids.length;
            this.#post({ kind: "tokens", id, ids, logprobs });
            while (running.unread > MOST_UNREAD && !signal.aborted) await new Promise<void>((wake) => (running.wake = wake));
          },
        },
        signal,
      );
    });
    this.#post({ kind: "finished", id, reason, stats: { ...stats, recoveries } });
  }

  /** Does the work, and does it again on a new device when the device is lost under it. */
  async #recovering<T>(id: number, signal: AbortSignal, work: (session: Session) => Promise<T>): Promise<T> {
    for (let losses = 0; ; ) {
      try {
        const { session } = this.#loaded();
        return await this.#telling(() => work(session));
      } catch (error) {
        const typed = MoaError.from(error);
        if (typed.code !== "device-lost" || ++losses > MOST_RECOVERIES) throw typed;
        await this.#reload(id, typed, signal);
      }
    }
  }

  /** Tells the loss of the device from what else fails because of it. */
  async #telling<T>(work: () => Promise<T>): Promise<T> {
    const { engine } = this.#loaded();
    try {
      return await work();
    } catch (error) {
      const typed = MoaError.from(error);
      if (typed.code !== "internal") throw typed;
      await new Promise((resolve) => setTimeout(resolve, LOSS_MS));
      const lost = engine.lost();
      if (lost === undefined) throw typed;
      throw new MoaError("device-lost", `the GPU device is lost: ${lost}`, { cause: error });
    }
  }

  async #reload(id: number, loss: MoaError, signal: AbortSignal): Promise<void> {
    const ready = this.#loaded();
    const gone = (cause: unknown) =>
      new MoaError("device-lost", `${loss.message}; and it could not be replaced: ${MoaError.from(cause).message}`, {
        hint: "load the model again", cause,
      });
    // A device that was lent is its owner's to replace.
    if (ready.request.device) throw new MoaError("device-lost", loss.message, { hint: "create another engine with a new device", cause: loss });
    this.#post({ kind: "recovering", id, reason: loss.message, progress: undefined });
    ready.session.close();
    discard(ready.engine, ready.tap);
    try {
      const again = await loadEngine(
        ready.module, ready.request,
        (progress) => this.#post({ kind: "recovering", id, reason: loss.message, progress }),
        signal,
      );
      const session = new Session(again.engine, ready.module.maxDecodeBatch(), ready.request.turnSnapshotBytes, ready.grammars);
      this.#ready = { ...ready, ...again, session };
    } catch (error) {
      this.#ready = undefined;
      const typed = MoaError.from(error);
      throw typed.code === "aborted" ? typed : gone(typed);
    }
  }

  #loaded(): Ready {
    if (!this.#ready) throw new MoaError("unloaded", "the engine is not loaded");
    return this.#ready;
  }

  #post(answer: Answer, transfer: Transferable[] = []): void {
    this.#port.postMessage(answer, transfer);
  }
}
