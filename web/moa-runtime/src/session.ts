/**
 * Generation on token ids over one engine: which part of a prompt is new, prefill chunk by chunk, decode in batches whose
 * size follows the device's speed, one or two of them always on their way, stop at a stop id, abort between steps. Tokens are
 * chosen on the device. It knows no text and no messages.
 *
 * The rings forget, so an earlier state is not always a prefix away. At the end of every prompt the rings are copied
 * on the GPU (`turnSnapshotBytes` at most): asking again, or editing what came later, then starts from there.
 */

import type { NativeEngine, NativeRingCopy, Sampling } from "./bindings.js";
import { MoaError, throwIfAborted } from "./errors.js";
import { type Constraint, Grammars } from "./grammar.js";
import { type TokenLogprob, logprobOf } from "./logprobs.js";

/** A request for tokens. */
export interface GenerateRequest {
  /** The whole prompt. What of it is in the cache already is not computed again. */
  ids: readonly number[];
  maxTokens: number;
  sampling: Sampling;
  /** Ids that end the answer; the one that does is part of the result. */
  stopIds: readonly number[];
  /** What the answer must look like. */
  constraint?: Constraint | undefined;
  /** How many of the likeliest tokens to report beside the chosen one's probability; nothing is reported without. */
  logprobs?: number | undefined;
  /** How many of the last `ids` are the answer's own: it is being continued. */
  answered?: number;
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
  /** GPU bytes of the copies from which earlier turns can be taken up. */
  turnSnapshotBytes: number;
  /** How often the device was lost and replaced on the way. */
  recoveries: number;
}

/** What happens on the way. */
export interface GenerateEvents {
  onPrefill(done: number, total: number): void;
  /** Waited for, so that a reader that lags behind holds the engine. */
  onTokens(ids: readonly number[], logprobs: readonly TokenLogprob[] | undefined): Promise<void> | void;
}

/** The cache's content, outside the GPU. */
export interface SavedRings {
  ids: number[];
  /** The longest that the cache has been: what of the rings is used. */
  longest: number;
  layers: Uint8Array[];
}

/**
 * Most tokens in a batch. With those that a reader has not taken (see `host.ts`) and the batches on their way they are no
 * more than can be taken back exactly wherever the rings stand.
 */
const LONGEST_BATCH = 8;
/** How long a batch should take, so that text flows and an abort is quick. */
const BATCH_MS = 60;
/** Batches on their way: while one is read, the device works on the next. */
const FLIGHTS = 2;
/** A device that takes less for a batch is done with the next before another is there: then one more is on its way. */
const QUICK_BATCH_MS = 20;
/** Stop tokens that the device knows at most. */
const MOST_DEVICE_STOPS = 15;
/** Copies that are kept at most, however small. */
const MOST_TURNS = 8;

interface Turn {
  ids: readonly number[];
  rewindable: number;
  copy: NativeRingCopy;
}

/** Tokens that came together. */
interface Batch {
  ids: number[];
  logprobs?: TokenLogprob[];
}

/** The tokens in an engine's cache, and the way to more of them. */
export class Session {
  readonly #engine: NativeEngine;
  readonly #maxBatch: number;
  readonly #turnBytes: number;
  readonly #grammars: Grammars;
  /** What is in the cache. Empty after an error, until the next prompt. */
  #cached: number[] = [];
  /** Oldest first. */
  #turns: Turn[] = [];

  constructor(engine: NativeEngine, maxDecodeBatch: number, turnSnapshotBytes = 0, grammars = new Grammars(undefined)) {
    this.#engine = engine;
    this.#maxBatch = Math.min(maxDecodeBatch, LONGEST_BATCH);
    this.#turnBytes = turnSnapshotBytes;
    this.#grammars = grammars;
  }

  async generate(
    request: GenerateRequest,
    events: GenerateEvents,
    signal: AbortSignal,
  ): Promise<{ reason: FinishReason; stats: GenerateStats }> {
    throwIfAborted(signal);
    if (request.ids.length === 0) throw new MoaError("bad-argument", "the prompt holds no token");
    const room = this.#room(request.ids);
    return this.#guarded(() => this.#run(request, Math.min(request.maxTokens, room), events, signal));
  }

  /** Logits after `ids`. */
  async logits(ids: readonly number[], signal: AbortSignal): Promise<Float32Array> {
    if (ids.length === 0) throw new MoaError("bad-argument", "the prompt holds no token");
    this.#room(ids);
    return this.#guarded(async () => {
      await this.#prefill(ids, () => undefined, signal);
      return this.#engine.logits();
    });
  }

  /** The cache's content. */
  async save(): Promise<SavedRings> {
    const layers: Uint8Array[] = [];
    for (let layer = 0; layer < this.#engine.layers; layer++) layers.push(await this.#engine.saveLayer(layer));
    return { ids: [...this.#cached], longest: this.#engine.longest, layers };
  }

  /** Puts a content back that was saved from the same model, plan and context. */
  async restore(saved: SavedRings): Promise<void> {
    if (saved.layers.length !== this.#engine.layers) {
      throw new MoaError("bad-argument", `the snapshot has ${saved.layers.length} layers, the model has ${this.#engine.layers}`);
    }
    await this.#guarded(async () => {
      this.#forget();
      for (const [layer, bytes] of saved.layers.entries()) this.#engine.restoreLayer(layer, saved.longest, bytes);
      this.#engine.setPosition(saved.ids.length, saved.longest);
      this.#cached = [...saved.ids];
    });
  }

  /** Frees the copies of earlier turns. */
  close(): void {
    for (const turn of this.#turns.splice(0)) release(turn.copy);
  }

  async #guarded<T>(work: () => Promise<T>): Promise<T> {
    try {
      return await work();
    } catch (error) {
      // After an abort the cache is what #cached says; after anything else nothing is certain.
      const typed = MoaError.from(error);
      if (typed.code !== "aborted") {
        this.#forget();
        if (typed.code === "device-lost") this.close();
      }
      throw typed;
    }
  }

  #room(ids: readonly number[]): number {
    const room = this.#engine.context - ids.length;
    if (room >= 1) return room;
    throw new MoaError(
      "context-overflow",
      `the prompt's ${ids.length} tokens leave no room in the declared context of ${this.#engine.context}`,
      { hint: "shorten the prompt, or create the engine with a larger contextLength" },
    );
  }

  async #run(request: GenerateRequest, maxTokens: number, events: GenerateEvents, signal: AbortSignal) {
    const start = performance.now();
    const cachedTokens = await this.#prefill(request.ids, (done, total) => events.onPrefill(done, total), signal);
    await this.#keepTurn();
    const prefilled = performance.now();

    const answered = request.answered ?? 0;
    // What is an answer already, and what came with a copy of the rings, the engine cannot know.
    if (penalizes(request.sampling)) this.#engine.setText(Uint32Array.from(request.ids), answered);
    // The device stops by itself where it can; otherwise what it did too much is taken back.
    this.#engine.setStop(Uint32Array.from(request.stopIds.length <= MOST_DEVICE_STOPS ? request.stopIds : []));
    const alone = request.constraint !== undefined || request.logprobs !== undefined;
    const decode = alone ? this.#oneByOne(request, maxTokens) : this.#inFlight(request, maxTokens);
    const stops = new Set(request.stopIds);
    let made = 0;
    let reason: FinishReason = "length";
    try {
      for await (const { ids, logprobs } of decode) {
        const stop = ids.findIndex((id) => stops.has(id));
        if (stop >= 0) {
          reason = "stop";
          ids.length = stop + 1;
        }
        made += ids.length;
        this.#cached.push(...ids);
        await events.onTokens(ids, logprobs?.slice(0, ids.length));
        if (reason === "stop") break;
        throwIfAborted(signal);
      }
    } finally {
      await this.#settle();
    }
    // While no ring has overwritten anything, going back needs no copy.
    if (this.#engine.rewindable >= this.#engine.len) this.close();
    const stats: GenerateStats = {
      promptTokens: request.ids.length - answered,
      cachedTokens: Math.min(cachedTokens, request.ids.length - answered),
      completionTokens: answered + made,
      prefillMs: prefilled - start,
      decodeMs: performance.now() - prefilled,
      turnSnapshotBytes: this.#turns.reduce((sum, { copy }) => sum + copy.bytes, 0),
      recoveries: 0,
    };
    return { reason, stats };
  }

  /** Batches of tokens, the next begun before the last is given. */
  async *#inFlight({ sampling }: GenerateRequest, maxTokens: number): AsyncGenerator<Batch, void, void> {
    const engine = this.#engine;
    let batch = 1;
    let begun = 0;
    let before: number | undefined;
    let flights = FLIGHTS;
    for (;;) {
      while (engine.inFlight < flights && begun < maxTokens) {
        const count = Math.min(batch, maxTokens - begun);
        engine.begin(count, sampling);
        begun += count;
      }
      if (engine.inFlight === 0) return;
      const ids = [...(await engine.collect())];
      const now = performance.now();
      // The first token comes from logits that are there: it tells nothing of the device's speed.
      if (before !== undefined) {
        const took = now - before;
        batch = Math.max(1, Math.min(this.#maxBatch, Math.floor((BATCH_MS * ids.length) / took)));
        flights = took < QUICK_BATCH_MS ? FLIGHTS + 1 : FLIGHTS;
      }
      before = now;
      yield { ids };
    }
  }

  /** Tokens one by one, where somebody must see the logits between them. */
  async *#oneByOne({ ids, answered = 0, sampling, constraint, stopIds, logprobs: top }: GenerateRequest, maxTokens: number): AsyncGenerator<Batch, void, void> {
    const grammar = constraint && (await this.#grammars.grammar(constraint, stopIds));
    try {
      // An answer that is continued is where its own tokens have brought it.
      for (const id of ids.slice(ids.length - answered)) grammar?.accept(id);
      for (let made = 0; made < maxTokens; made++) {
        const logits = await this.#engine.logits();
        const raw = top === undefined ? undefined : logits.slice();
        if (grammar) {
          grammar.mask(logits);
          this.#engine.setLogits(logits);
        }
        const [id] = await this.#engine.decode(1, sampling);
        if (id === undefined) throw new MoaError("no-logits", "the model gave no number for any token");
        grammar?.accept(id);
        yield raw === undefined ? { ids: [id] } : { ids: [id], logprobs: [logprobOf(raw, id, top as number)] };
      }
    } finally {
      grammar?.free();
    }
  }

  /** Waits for the batches on their way and takes back what nobody was given. */
  async #settle(): Promise<void> {
    const engine = this.#engine;
    while (engine.inFlight > 0) await engine.collect();
    // The newest token is not in the cache until another is fed after it.
    this.#cached.length = Math.min(this.#cached.length, engine.len);
    this.#rewind(engine.len - this.#cached.length);
  }

  /** Makes the cache hold exactly `ids`, with logits for the next token. Returns how many were there already. */
  async #prefill(
    ids: readonly number[],
    onPrefill: (done: number, total: number) => void,
    signal: AbortSignal,
  ): Promise<number> {
    this.#goBack(ids);
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

  /** Brings the cache to the longest beginning of `ids` that can be had: by a rewind, or from an earlier turn. */
  #goBack(ids: readonly number[]): void {
    // The last token is always fed anew: the logits after it are what the answer begins with.
    const wanted = ids.slice(0, -1);
    const reach = (have: readonly number[], rewindable: number) => {
      let common = 0;
      while (common < Math.min(have.length, wanted.length) && have[common] === wanted[common]) common++;
      return have.length - common <= rewindable ? common : 0;
    };
    let best = reach(this.#cached, this.#engine.rewindable);
    let from: Turn | undefined;
    for (const turn of this.#turns) {
      const common = reach(turn.ids, turn.rewindable);
      if (common > best) [best, from] = [common, turn];
    }
    if (from) {
      this.#engine.restoreRings(from.copy);
      this.#cached = [...from.ids];
    }
    if (best === 0 && this.#cached.length > 0) this.#forget();
    else this.#rewind(this.#cached.length - best);
  }

  /** Copies the rings on the GPU, at the end of a prompt. */
  async #keepTurn(): Promise<void> {
    // What a rewind reaches anyway needs no copy.
    if (this.#turnBytes === 0 || this.#cached.length <= this.#engine.slack) return;
    const same = this.#turns.findIndex(({ ids }) => ids.length === this.#cached.length && ids.every((id, at) => id === this.#cached[at]));
    if (same >= 0) {
      this.#turns.push(...this.#turns.splice(same, 1));
      return;
    }
    let copy: NativeRingCopy;
    try {
      copy = await this.#engine.copyRings();
    } catch (error) {
      // No room for a copy: then going back will cost a prefill.
      if (MoaError.from(error).code !== "out-of-memory") throw error;
      this.close();
      return;
    }
    this.#turns.push({ ids: [...this.#cached], rewindable: this.#engine.rewindable, copy });
    const total = () => this.#turns.reduce((sum, turn) => sum + turn.copy.bytes, 0);
    while (this.#turns.length > 0 && (this.#turns.length > MOST_TURNS || total() > this.#turnBytes)) {
      release((this.#turns.shift() as Turn).copy);
    }
  }

  #rewind(count: number): void {
    if (count === 0) return;
    try {
      this.#engine.rewind(count);
      this.#cached.length = this.#engine.len;
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

function penalizes({ repetitionPenalty = 1, presencePenalty = 0, frequencyPenalty = 0 }: Sampling): boolean {
  return repetitionPenalty !== 1 || presencePenalty !== 0 || frequencyPenalty !== 0;
}

function release(copy: NativeRingCopy): void {
  copy.destroy();
  copy.free();
}
