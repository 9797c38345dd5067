/**
 * What this package uses of the wasm module. Written by hand so that tests can stand in for it;
 * the compiler checks in `worker.ts` that the generated module fits.
 */

/** Options of `MoaEngine.create`. */
export interface NativeOptions {
  prefillChunk?: number;
  defaultLimits?: boolean;
  powerPreference?: "high-performance" | "low-power";
}

/** How the next token is chosen; temperature 0 is greedy. */
export interface Sampling {
  temperature?: number;
  topK?: number;
  topP?: number;
  minP?: number;
  seed?: number;
}

/** The engine on ids: one sequence, one device. Await one call before the next. */
export interface NativeEngine {
  writeShard(index: number, offset: number, bytes: Uint8Array): void;
  finishLoading(): Promise<void>;
  /** Takes at most one chunk from the front of `ids`, and says how many. */
  prefill(ids: Uint32Array): Promise<number>;
  /** The next 1..count ids. The last one is not in the cache yet. */
  decode(count: number, sampling?: Sampling): Promise<Uint32Array>;
  logits(): Promise<Float32Array>;
  rewind(count: number): void;
  reset(): void;
  readonly len: number;
  readonly context: number;
  kvBytes(): string;
  gpuBytes(): string;
  planJson(): string;
  spansJson(): string;
  adapterJson(): string;
  /** Gives the device's memory back at once. */
  destroy(): void;
  free(): void;
}

/** The module after its start. */
export interface NativeModule {
  chunkBytes(): number;
  maxDecodeBatch(): number;
  MoaEngine: {
    create(
      manifestJson: string,
      planName: string,
      planBytes: Uint8Array | undefined,
      context: number,
      options?: NativeOptions,
    ): Promise<NativeEngine>;
  };
}
