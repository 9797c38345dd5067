/** The page's side of the protocol: requests become promises and async iterables, aborts become messages. */

import type { TokenLogprob } from "./logprobs.js";
import { MoaError, throwIfAborted } from "./errors.js";
import type { LoadProgress } from "./progress.js";
import { type Answer, LAST_ANSWERS, type EngineRequest, type LoadedInfo, type ModelRequest, type Port, type Request, type Snapshot } from "./protocol.js";
import type { FinishReason, GenerateRequest, GenerateStats } from "./session.js";

/** What a stream of tokens yields. */
export type TokenEvent =
  | { kind: "prefilled"; done: number; total: number }
  | { kind: "tokens"; ids: readonly number[]; logprobs?: readonly TokenLogprob[] | undefined }
  | { kind: "finished"; reason: FinishReason; stats: GenerateStats };

/** A lost device, and how far its replacement is. */
export interface Recovery {
  reason: string;
  progress: LoadProgress | undefined;
}

/** How long a worker's script may take to come. */
const SILENCE_MS = 60_000;

type WithoutId<R> = R extends { id: number } ? Omit<R, "id"> : never;

/** Talks to one host. */
export class Client {
  readonly #port: Port;
  readonly #onRecovery: (recovery: Recovery) => void;
  readonly #listeners = new Map<number, (answer: Answer) => void>();
  #nextId = 1;
  #dead: MoaError | undefined;

  constructor(port: Port, onRecovery: (recovery: Recovery) => void = () => undefined) {
    this.#port = port;
    this.#onRecovery = onRecovery;
    port.addEventListener("message", (event) => {
      const answer = event.data as Answer;
      if (answer.kind === "recovering") this.#onRecovery({ reason: answer.reason, progress: answer.progress });
      else this.#listeners.get(answer.id)?.(answer);
    });
    port.start?.();
  }

  /** Fails everything that waits and everything that comes: the worker is gone. */
  die(error: MoaError): void {
    if (this.#dead) return;
    this.#dead = error;
    for (const [id, listener] of [...this.#listeners]) listener({ kind: "failed", id, error: error.fields() });
  }

  /** Has the host make an engine: of a model, or of the weights that its port was made for. */
  async load(
    request: EngineRequest,
    model: ModelRequest | undefined,
    onProgress: (progress: LoadProgress) => void,
    signal: AbortSignal | undefined,
  ): Promise<LoadedInfo> {
    // A worker that failed before anybody listened to it never says so.
    const silence = setTimeout(() => {
      this.die(new MoaError("internal", "the engine's worker does not answer", { hint: "is the worker's script on the server?" }));
    }, SILENCE_MS);
    try {
      for await (const answer of this.#ask({ kind: "load", request, model }, signal)) {
        clearTimeout(silence);
        if (answer.kind === "progress") onProgress(answer.progress);
        if (answer.kind === "loaded") return answer.info;
      }
    } finally {
      clearTimeout(silence);
    }
    throw noAnswer();
  }

  /** Has the host serve another engine of the same weights through `port`. */
  fork(port: Port, transfer: Transferable[]): void {
    if (this.#dead) throw this.#dead;
    this.#port.postMessage({ kind: "fork", id: this.#nextId++, port } satisfies Request, transfer);
  }

  /** Streams an answer. Leaving the loop early aborts it. */
  async *generate(request: GenerateRequest, signal: AbortSignal | undefined): AsyncGenerator<TokenEvent, void, void> {
    let id = 0;
    for await (const answer of this.#ask({ kind: "generate", request }, signal, (given) => (id = given))) {
      if (answer.kind === "prefilled" || answer.kind === "finished") yield answer;
      if (answer.kind === "tokens") {
        yield answer;
        // The reader is back for more.
        this.#port.postMessage({ kind: "taken", id, tokens: answer.ids.length } satisfies Request);
      }
    }
  }

  async logits(ids: readonly number[], signal: AbortSignal | undefined): Promise<Float32Array> {
    for await (const answer of this.#ask({ kind: "logits", ids }, signal)) {
      if (answer.kind === "logits") return answer.logits;
    }
    throw noAnswer();
  }

  async snapshot(signal: AbortSignal | undefined): Promise<Snapshot> {
    for await (const answer of this.#ask({ kind: "snapshot" }, signal)) {
      if (answer.kind === "snapshot") return answer.snapshot;
    }
    throw noAnswer();
  }

  async restore(snapshot: Snapshot, signal: AbortSignal | undefined): Promise<void> {
    for await (const answer of this.#ask({ kind: "restore", snapshot }, signal)) {
      if (answer.kind === "done") return;
    }
    throw noAnswer();
  }

  /** Has the host free the GPU. What waits before it fails at once. */
  async unload(error: MoaError): Promise<void> {
    if (this.#dead) return;
    for (const [id, listener] of [...this.#listeners]) {
      listener({ kind: "failed", id, error: error.fields() });
      this.#port.postMessage({ kind: "abort", id } satisfies Request);
    }
    const asked = this.#ask({ kind: "unload" }, undefined);
    const first = asked.next();
    this.#dead = error;
    await first;
    await asked.return();
  }

  /** Sends a request and yields its answers until the caller has what it wants. */
  async *#ask(
    request: WithoutId<Request>,
    signal: AbortSignal | undefined,
    onId: (id: number) => void = () => undefined,
  ): AsyncGenerator<Answer, void, void> {
    throwIfAborted(signal);
    if (this.#dead) throw this.#dead;
    const id = this.#nextId++;
    onId(id);
    const waiting: Answer[] = [];
    let wake: (() => void) | undefined;
    this.#listeners.set(id, (answer) => {
      waiting.push(answer);
      wake?.();
    });
    const abort = () => {
      this.#port.postMessage({ kind: "abort", id } satisfies Request);
      wake?.();
    };
    signal?.addEventListener("abort", abort, { once: true });
    let done = false;
    try {
      this.#port.postMessage({ ...request, id });
      for (;;) {
        // The caller need not wait until the engine has finished its step; the next request will.
        throwIfAborted(signal);
        const answer = waiting.shift();
        if (answer === undefined) {
          await new Promise<void>((resolve) => (wake = resolve));
          continue;
        }
        done = LAST_ANSWERS.has(answer.kind);
        if (answer.kind === "failed") {
          const { code, message, hint } = answer.error;
          throw new MoaError(code, message, { hint });
        }
        yield answer;
        if (done) return;
      }
    } finally {
      signal?.removeEventListener("abort", abort);
      this.#listeners.delete(id);
      if (!done) abort();
    }
  }
}

function noAnswer(): MoaError {
  return new MoaError("internal", "the worker ended a request without an answer");
}
