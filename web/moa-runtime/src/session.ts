/**
 * Generation on token ids over one engine: which part of a prompt is new, prefill chunk by chunk, decode in batches
 * whose size follows the device's speed, stop at a stop id, abort between steps. It knows no text and no messages.
 */

import type { NativeEngine, Sampling } from "./bindings.js";
import { MoaError, throwIfAborted } from "./errors.js";

/** A request for tokens. */
export interface GenerateRequest {
  /** The whole prompt. What of it is in the cache already is not computed again. */
  ids: readonly number[];
  maxTokens: number;
  sampling: Sampling;
  /** Ids that end the answer; the one that does is part of the result. */
  stopIds: readonly number[];
}

/** Why an answer ended. */
export type FinishReason = "stop" | "length";

/** Counts and times of one answer. */
export interface GenerateStats {
  promptTokens: number;
  /** Tokens of the prompt that were in the cache already. */
  cachedTokens: number;
  completionTokens: number;
  prefillMs: number;
  decodeMs: number;
}

/** What happens on the way. */
export interface GenerateEvents {
  onPrefill(done: number, total: number): void;
  onTokens(ids: readonly number[]): void;
}

/** Most tokens to decode before the page hears of them. */
const LONGEST_BATCH = 8;
/** How long a batch should take, so that text flows and an abort is quick. */
const BATCH_MS = 60;
/** Decoded tokens that may be taken back exactly: the slack of the rings. */
const SLACK = 64;

/** The tokens in an engine's cache, and the way to more of them. */
export class Session {
  readonly #engine: NativeEngine;
  readonly #maxBatch: number;
  /** What is in the cache. Empty after an error, until the next prompt. */
  #cached: number[] = [];

  constructor(engine: NativeEngine, maxDecodeBatch: number) {
    this.#engine = engine;
    this.#maxBatch = Math.min(maxDecodeBatch, LONGEST_BATCH);
  }

  async generate(
    request: GenerateRequest,
    events: GenerateEvents,
    signal: AbortSignal,
  ): Promise<{ reason: FinishReason; stats: GenerateStats }> {
    throwIfAborted(signal);
    const room = this.#engine.context - request.ids.length;
    if (request.ids.length === 0) throw new MoaError("bad-argument", "the prompt holds no token");
    if (room < 1) {
      throw new MoaError(
        "context-overflow",
        `the prompt's ${request.ids.length} tokens leave no room in the declared context of ${this.#engine.context}`,
        { hint: "shorten the prompt, or create the engine with a larger contextLength" },
      );
    }
    try {
      return await this.#run(request, Math.min(request.maxTokens, room), events, signal);
    } catch (error) {
      // After an abort the cache is what #cached says; after anything else nothing is certain.
      const typed = MoaError.from(error);
      if (typed.code !== "aborted") this.#forget();
      throw typed;
    }
  }

  /** Logits after `ids`. */
  async logits(ids: readonly number[], signal: AbortSignal): Promise<Float32Array> {
    await this.#prefill(ids, () => undefined, signal);
    return this.#engine.logits();
  }

  async #run(request: GenerateRequest, maxTokens: number, events: GenerateEvents, signal: AbortSignal) {
    const start = performance.now();
    const cachedTokens = await this.#prefill(request.ids, (done, total) => events.onPrefill(done, total), signal);
    const prefilled = performance.now();

    const stops = new Set(request.stopIds);
    let made = 0;
    let reason: FinishReason = "length";
    let batch = 1;
    /** The newest id, which is not in the cache until the next step feeds it. */
    let pending: number | undefined;
    while (made < maxTokens && reason === "length") {
      throwIfAborted(signal);
      const before = performance.now();
      const ids = [...(await this.#engine.decode(Math.min(batch, maxTokens - made), request.sampling))];
      if (pending !== undefined) this.#cached.push(pending);
      pending = ids.at(-1);
      this.#cached.push(...ids.slice(0, -1));

      const stop = ids.findIndex((id) => stops.has(id));
      if (stop >= 0) {
        reason = "stop";
        // The engine has fed what follows the stop id, the pending one not counted: take it back.
        this.#rewind(Math.max(ids.length - 2 - stop, 0));
        ids.length = stop + 1;
      }
      made += ids.length;
      events.onTokens(ids);
      const msPerToken = (performance.now() - before) / Math.max(ids.length, 1);
      batch = Math.max(1, Math.min(this.#maxBatch, Math.floor(BATCH_MS / msPerToken)));
    }
    const stats: GenerateStats = {
      promptTokens: request.ids.length,
      cachedTokens,
      completionTokens: made,
      prefillMs: prefilled - start,
      decodeMs: performance.now() - prefilled,
    };
    return { reason, stats };
  }

  /** Makes the cache hold exactly `ids`, with logits for the next token. Returns how many were there already. */
  async #prefill(
    ids: readonly number[],
    onPrefill: (done: number, total: number) => void,
    signal: AbortSignal,
  ): Promise<number> {
    let common = 0;
    // The last token is always fed anew: the logits after it are what the answer begins with.
    const most = Math.min(this.#cached.length, ids.length - 1);
    while (common < most && this.#cached[common] === ids[common]) common++;
    const surplus = this.#cached.length - common;
    if (surplus > SLACK) this.#forget();
    else this.#rewind(surplus);

    const kept = this.#cached.length;
    let rest = Uint32Array.from(ids.slice(kept));
    while (rest.length > 0) {
      throwIfAborted(signal);
      const taken = await this.#engine.prefill(rest);
      for (const id of rest.subarray(0, taken)) this.#cached.push(id);
      rest = rest.subarray(taken);
      onPrefill(this.#cached.length - kept, ids.length - kept);
    }
    return kept;
  }

  #rewind(count: number): void {
    if (count === 0) return;
    try {
      this.#engine.rewind(count);
      this.#cached.length -= count;
    } catch (error) {
      if (MoaError.from(error).code !== "rewind-too-far") throw error;
      this.#forget();
    }
  }

  #forget(): void {
    this.#cached = [];
    this.#engine.reset();
  }
}
