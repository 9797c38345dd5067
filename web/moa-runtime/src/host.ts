/**
 * The worker's side of the protocol: owns the engine, runs one request at a time, and turns every failure into a
 * typed answer. A lost device is replaced and the request goes on. It does not know that it sits in a worker: any
 * port will do.
 */

import type { NativeModule } from "./bindings.js";
import { MoaError, throwIfAborted } from "./errors.js";
import { Family, type Member } from "./family.js";
import { sha256Hex } from "./hash.js";
import type { LoadProgress } from "./progress.js";
import type { Answer, EngineRequest, LoadedInfo, ModelRequest, Port, Request } from "./protocol.js";
import { type GenerateRequest, Session } from "./session.js";

/** Starts the wasm module; `wasmUrl` where it does not lie beside its script. */
export type StartModule = (wasmUrl: string | undefined) => Promise<NativeModule>;

/** Serves requests that come through `port`: for an engine of `family`, or of a model that it names. */
export function attachHost(port: Port, startModule: StartModule, family?: Family): void {
  const host = new Host(port, startModule, family);
  port.addEventListener("message", (event) => host.receive(event.data as Request));
  port.start?.();
}

/** Tokens that may be on their way to a reader that has not asked for them: half of what can be taken back exactly. */
const MOST_UNREAD = 32;
/** Devices that one request may lose. */
const MOST_RECOVERIES = 3;
/** A device's other errors may come a little before the word that it is lost. */
const LOSS_MS = 50;

type Work = Exclude<Request, { kind: "abort" | "taken" | "fork" }>;

/** A request that runs. */
interface Running {
  controller: AbortController;
  unread: number;
  wake: (() => void) | undefined;
}

interface Ready extends Member {
  family: Family;
  request: EngineRequest;
  session: Session;
  /** Hash of what a snapshot of it belongs to. */
  of: string;
}

/** What an engine was before its device was lost. */
interface Lost extends Pick<Ready, "family" | "request" | "of"> {
  loss: MoaError;
}

class Host {
  readonly #port: Port;
  readonly #startModule: StartModule;
  readonly #running = new Map<number, Running>();
  /** Ends when all earlier requests have: an engine is one sequence. */
  #queue: Promise<void> = Promise.resolve();
  #family: Family | undefined;
  #ready: Ready | undefined;
  #lost: Lost | undefined;

  constructor(port: Port, startModule: StartModule, family: Family | undefined) {
    this.#port = port;
    this.#startModule = startModule;
    this.#family = family;
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
    if (request.kind === "fork") return attachHost(request.port, this.#startModule, this.#family);
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
        const info = await this.#load(id, request.request, request.model, signal);
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
          this.#ready.home.leave(this.#ready.engine);
        }
        this.#ready = this.#lost = this.#family = undefined;
        return this.#post({ kind: "done", id });
      }
    }
  }

  async #load(id: number, request: EngineRequest, model: ModelRequest | undefined, signal: AbortSignal): Promise<LoadedInfo> {
    this.#post({ kind: "hello", id });
    if (this.#ready || (this.#family && model)) throw new MoaError("bad-argument", "this worker holds an engine already");
    const family = this.#family ?? (model && new Family(await this.#startModule(model.wasmUrl), model));
    if (!family) throw new MoaError("unloaded", "the engine is not loaded");
    throwIfAborted(signal);
    const member = await family.join(request, (progress) => this.#post({ kind: "progress", id, progress }), signal);
    const { engine, report } = member;
    const spansJson = engine.spansJson();
    const kvBytesJson = engine.kvBytes();
    const rings = request.options.int8Kv ? `${spansJson}\nint8` : spansJson;
    const of = await sha256Hex(new TextEncoder().encode(`${family.model.manifestJson}\n${rings}`));
    const turnSnapshotBytes = request.turnSnapshotBytes ?? 2 * (JSON.parse(kvBytesJson) as { cache: number }).cache;
    this.#family = family;
    this.#ready = this.#made(family, { ...request, turnSnapshotBytes }, member, of);
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

  #made(family: Family, request: EngineRequest, member: Member, of: string): Ready {
    const session = new Session(member.engine, family.module.maxDecodeBatch(), request.turnSnapshotBytes, family.grammars);
    return { ...member, family, request, session, of };
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
      if (this.#lost) await this.#replace(id, this.#lost, signal);
      const { session, family } = this.#loaded();
      try {
        return await this.#telling(() => work(session));
      } catch (error) {
        const loss = MoaError.from(error);
        if (loss.code !== "device-lost" || ++losses > MOST_RECOVERIES) throw loss;
        // A device that was lent is its owner's to replace.
        if (family.model.device) throw new MoaError("device-lost", loss.message, { hint: "create another engine with a new device", cause: loss });
        this.#lose(loss);
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

  /** Lets go of an engine whose device is gone. */
  #lose(loss: MoaError): void {
    const { family, request, of, session, home, engine } = this.#loaded();
    session.close();
    home.leave(engine);
    this.#ready = undefined;
    this.#lost = { family, request, of, loss };
  }

  /** Makes the engine anew. If that is aborted, the next request tries again. */
  async #replace(id: number, { family, request, of, loss }: Lost, signal: AbortSignal): Promise<void> {
    const recovering = (progress: LoadProgress | undefined) => this.#post({ kind: "recovering", id, reason: loss.message, progress });
    recovering(undefined);
    try {
      this.#ready = this.#made(family, request, await family.join(request, recovering, signal), of);
      this.#lost = undefined;
    } catch (error) {
      const cause = MoaError.from(error);
      if (cause.code === "aborted") throw cause;
      this.#lost = undefined;
      throw new MoaError("device-lost", `${loss.message}; and it could not be replaced: ${cause.message}`, { hint: "load the model again", cause });
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
