/**
 * What this package uses of the wasm module. Written by hand so that tests can stand in for it;
 * the compiler checks in `start.ts` that the generated module fits.
 */

/** Options of `MoaEngine.create`. */
export interface NativeOptions {
  prefillChunk?: number;
  defaultLimits?: boolean;
  powerPreference?: "high-performance" | "low-power";
  /** Keeps keys and values as bytes with a scale for each token and head: half the memory, rounded more coarsely. */
  int8Kv?: boolean;
  /**
   * What kernels use beyond WebGPU's defaults: `"base"` for nothing, or some of `subgroups`, `f16` or `dp4a` (prefill) and
   * `packed` (decode), joined by `+` in this order. By default `"auto"`: the first load of a model tries what the adapter
   * has, on the model itself, and the answer is kept beside the weights.
   */
  kernels?: string;
  /**
   * The kernels of GPUs on a software adapter too, where others are quicker.
   * @internal for tests
   */
  fused?: boolean;
}

/** How the next token is chosen, on the device; temperature 0 is greedy. A seed's draws belong to places of the text. */
export interface Sampling {
  temperature?: number;
  topK?: number;
  topP?: number;
  minP?: number;
  seed?: number;
  /** Divides the positive logits of tokens in prompt or answer, and multiplies negative ones; 1 does nothing. */
  repetitionPenalty?: number;
  /** Taken from the logit of every token that the answer holds already. */
  presencePenalty?: number;
  /** Taken as often as the answer holds the token. */
  frequencyPenalty?: number;
}

/** A copy of the rings on the same device. */
export interface NativeRingCopy {
  readonly len: number;
  readonly bytes: number;
  /** Gives its memory back at once. */
  destroy(): void;
  free(): void;
}

/** An engine's weights, for other engines on the same device. */
export interface NativeWeights {
  /** Another engine; `finishLoading` makes it ready. */
  engine(planName: string, planBytes: Uint8Array | undefined, context: number, options?: NativeOptions): Promise<NativeEngine>;
  /** Why the device was lost, once it is. */
  lost(): string | undefined;
  /** Gives their memory back at once. */
  destroy(): void;
  free(): void;
}

/** The engine on ids: one sequence, one device. Await one call before the next. */
export interface NativeEngine {
  writeShard(index: number, offset: number, bytes: Uint8Array): void;
  /** Where a chunk lies: buffer, offset in it, bytes, and again where it lies in two. A buffer's label is `weights.` and its number. */
  chunkPlaces(index: number, offset: number): Uint32Array;
  /** Takes note of a chunk that was checked and written to its places by the caller. */
  acceptChunk(index: number, offset: number): void;
  finishLoading(): Promise<void>;
  /** The weights, once every chunk is there. */
  weights(): NativeWeights;
  /** Goes on with the quickest kernels that the device has, and says which; nothing where there is no use in trying. */
  tune(): Promise<string | undefined>;
  /** Takes at most one chunk from the front of `ids`, and says how many. */
  prefill(ids: Uint32Array): Promise<number>;
  /** The next 1..count ids. The last one is not in the cache yet. */
  decode(count: number, sampling?: Sampling): Promise<Uint32Array>;
  /** Submits a batch and returns at once: call `collect` once for each. */
  begin(count: number, sampling?: Sampling): void;
  /** The tokens of the oldest batch: fewer than were asked for where the last of them is a stop token. */
  collect(): Promise<Uint32Array>;
  /** Batches that were begun and not collected. */
  readonly inFlight: number;
  /** Tokens that end a text on the device, 15 at most. */
  setStop(ids: Uint32Array): void;
  /** Says which tokens the cache holds, for penalties; the last `answered` of them were generated. */
  setText(ids: Uint32Array, answered: number): void;
  logits(): Promise<Float32Array>;
  /** Puts other logits in the place of those that `logits()` gave; what is no finite number is never chosen. */
  setLogits(logits: Float32Array): void;
  rewind(count: number): void;
  reset(): void;
  copyRings(): Promise<NativeRingCopy>;
  restoreRings(copy: NativeRingCopy): void;
  /** The used part of a layer's K and V, as bytes for `restoreLayer`. */
  saveLayer(layer: number): Promise<Uint8Array>;
  restoreLayer(layer: number, longest: number, bytes: Uint8Array): void;
  /** After every layer is restored: how many tokens the cache holds, and the longest that it has been. */
  setPosition(len: number, longest: number): void;
  readonly len: number;
  readonly longest: number;
  readonly layers: number;
  /** Tokens that can be taken back exactly wherever the rings stand. */
  readonly slack: number;
  /** Tokens that can be taken back exactly now. */
  readonly rewindable: number;
  readonly context: number;
  kvBytes(): string;
  gpuBytes(): string;
  planJson(): string;
  spansJson(): string;
  adapterJson(): string;
  /** Why the device was lost, once it is. */
  lost(): string | undefined;
  /** Gives the device's memory back at once, but for weights that others hold. */
  destroy(): void;
  free(): void;
}

/** The module after its start. */
export interface NativeModule {
  version(): string;
  chunkBytes(): number;
  maxDecodeBatch(): number;
  MoaEngine: {
    create(
      manifestJson: string,
      planName: string,
      planBytes: Uint8Array | undefined,
      context: number,
      options?: NativeOptions & { extras?: readonly string[] },
    ): Promise<NativeEngine>;
  };
}
