/**
 * Language models with compiled sparse attention, in the browser, on WebGPU.
 *
 * Importing this module touches nothing: no `navigator`, no worker, no download. `createEngine` does all of that.
 */

export type { NativeOptions, Sampling } from "./bindings.js";
export type {
  ChatCompletion,
  ChatCompletionChunk,
  ChatRequest,
  ChatStreamRequest,
  RequestOptions,
  RequestProgress,
  Usage,
} from "./chat.js";
export { ChatCompletions } from "./chat.js";
export type { TokenEvent } from "./client.js";
export type {
  Adapter,
  EngineOptions,
  GenerateOptions,
  KvBytes,
  Memory,
  PlanInfo,
} from "./engine.js";
export { createEngine, Engine } from "./engine.js";
export type { MoaErrorCode } from "./errors.js";
export { MoaError } from "./errors.js";
export type { Manifest, PlanEntry, PlanFigures } from "./manifest.js";
export type { Probe } from "./probe.js";
export { probe } from "./probe.js";
export type { LoadPhase, LoadProgress } from "./progress.js";
export type { FinishReason, GenerateStats } from "./session.js";
export type { ChatMessage } from "./text.js";
export { StreamDecoder, TextCodec } from "./text.js";
