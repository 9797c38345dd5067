/** The messages between a page and the worker that holds the engine: two closed unions. */

import type { NativeOptions } from "./bindings.js";
import type { ErrorFields } from "./errors.js";
import type { ShardSource } from "./download.js";
import type { LoadProgress } from "./progress.js";
import type { FinishReason, GenerateRequest, GenerateStats } from "./session.js";

/** Everything that the worker needs to load a model. */
export interface LoadRequest {
  manifestJson: string;
  shards: readonly ShardSource[];
  planName: string;
  planBytes: Uint8Array | undefined;
  contextLength: number;
  wasmUrl: string | undefined;
  options: NativeOptions;
}

/** What the engine says of itself once it is ready; each JSON text as the engine gave it. */
export interface LoadedInfo {
  contextLength: number;
  kvBytesJson: string;
  gpuBytesJson: string;
  planJson: string;
  spansJson: string;
  adapterJson: string;
}

/** From the page. `id` names the request that answers refer to. */
export type Request =
  | { kind: "load"; id: number; request: LoadRequest }
  | { kind: "generate"; id: number; request: GenerateRequest }
  | { kind: "logits"; id: number; ids: readonly number[] }
  /** Stops the request of this id; it then fails with `aborted`. */
  | { kind: "abort"; id: number };

/** From the worker. */
export type Answer =
  | { kind: "progress"; id: number; progress: LoadProgress }
  | { kind: "loaded"; id: number; info: LoadedInfo }
  | { kind: "prefilled"; id: number; done: number; total: number }
  | { kind: "tokens"; id: number; ids: readonly number[] }
  | { kind: "finished"; id: number; reason: FinishReason; stats: GenerateStats }
  | { kind: "logits"; id: number; logits: Float32Array }
  | { kind: "failed"; id: number; error: ErrorFields };

/** One end of a message channel: a `Worker`, a worker's own scope or a `MessagePort`. */
export interface Port {
  postMessage(message: unknown, transfer?: Transferable[]): void;
  addEventListener(type: "message", listener: (event: MessageEvent) => void): void;
}
