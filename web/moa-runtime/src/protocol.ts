/** The messages between a page and the worker that holds the engine: two closed unions. */

import type { NativeOptions } from "./bindings.js";
import type { TokenLogprob } from "./logprobs.js";
import type { GpuDeviceLike } from "./device.js";
import type { LoadReport, Patience, Shard } from "./download.js";
import type { ErrorFields } from "./errors.js";
import type { LoadProgress } from "./progress.js";
import type { FinishReason, GenerateRequest, GenerateStats, SavedRings } from "./session.js";
import type { ModelLocation } from "./source.js";
import type { CacheKind } from "./store.js";

/** What one engine is to be: a plan at a context. */
export interface EngineRequest {
  planName: string;
  planBytes: Uint8Array | undefined;
  contextLength: number;
  options: NativeOptions;
  /** GPU bytes for copies of earlier turns; by default twice as many as the KV cache has. */
  turnSnapshotBytes: number | undefined;
}

/** A model's weights, and everything that the worker needs to load them, and to load them again when the device is lost. */
export interface ModelRequest {
  location: ModelLocation;
  manifestJson: string;
  shards: readonly Shard[];
  wasmUrl: string | undefined;
  grammarWasmUrl: string | undefined;
  cache: CacheKind | undefined;
  /** Only where page and engine share a thread: devices cannot be posted. */
  device?: GpuDeviceLike | undefined;
  patience?: Partial<Patience> | undefined;
}

/** What the engine says of itself once it is ready; each JSON text as the engine gave it. */
export interface LoadedInfo {
  contextLength: number;
  kvBytesJson: string;
  gpuBytesJson: string;
  planJson: string;
  spansJson: string;
  slack: number;
  adapterJson: string;
  report: LoadReport;
}

/** A snapshot with the hash of what it belongs to. */
export interface Snapshot extends SavedRings {
  version: 1;
  /** Hash of manifest and spans: a snapshot fits the same model, plan and context only. */
  of: string;
}

/** From the page. `id` names the request that answers refer to. */
export type Request =
  /** Makes the engine of this port; without a model, of the weights that the port was made for. */
  | { kind: "load"; id: number; request: EngineRequest; model?: ModelRequest | undefined }
  | { kind: "generate"; id: number; request: GenerateRequest }
  | { kind: "logits"; id: number; ids: readonly number[] }
  | { kind: "snapshot"; id: number }
  | { kind: "restore"; id: number; snapshot: Snapshot }
  | { kind: "unload"; id: number }
  /** The reader of the stream `id` has taken so many tokens. */
  | { kind: "taken"; id: number; tokens: number }
  /** Stops the request of this id; it then fails with `aborted`. */
  | { kind: "abort"; id: number }
  /** From now on another engine of the same weights is served through `port`. */
  | { kind: "fork"; id: number; port: Port };

/** From the worker. */
export type Answer =
  /** The host is there; loading begins. */
  | { kind: "hello"; id: number }
  | { kind: "progress"; id: number; progress: LoadProgress }
  | { kind: "loaded"; id: number; info: LoadedInfo }
  | { kind: "prefilled"; id: number; done: number; total: number }
  | { kind: "tokens"; id: number; ids: readonly number[]; logprobs?: readonly TokenLogprob[] | undefined }
  | { kind: "finished"; id: number; reason: FinishReason; stats: GenerateStats }
  | { kind: "logits"; id: number; logits: Float32Array }
  | { kind: "snapshot"; id: number; snapshot: Snapshot }
  | { kind: "done"; id: number }
  /** The device was lost, and another is being made ready: to the request that met it. */
  | { kind: "recovering"; id: number; reason: string; progress: LoadProgress | undefined }
  | { kind: "failed"; id: number; error: ErrorFields };

/** The answers after which a request is over. */
export const LAST_ANSWERS: ReadonlySet<Answer["kind"]> = new Set(["loaded", "finished", "logits", "snapshot", "done", "failed"]);

/** One end of a message channel: a `Worker`, a worker's own scope or a `MessagePort`. */
export interface Port {
  postMessage(message: unknown, transfer?: Transferable[]): void;
  addEventListener(type: "message", listener: (event: MessageEvent) => void): void;
  /** A `MessagePort` waits for it. */
  start?(): void;
  close?(): void;
}

/** A channel within one thread. Nothing is copied: neither side may change what it has sent. */
export function localChannel(): [Port, Port] {
  const ends = [new EventTarget(), new EventTarget()] as const;
  const port = (own: EventTarget, other: EventTarget): Port => ({
    postMessage: (data) => queueMicrotask(() => other.dispatchEvent(Object.assign(new Event("message"), { data }))),
    addEventListener: (type, listener) => own.addEventListener(type, listener as EventListener),
  });
  return [port(ends[0], ends[1]), port(ends[1], ends[0])];
}
