/**
 * Language models with compiled sparse attention, in the browser, on WebGPU.
 *
 * Importing this module touches nothing: no `navigator`, no worker, no download. `createEngine` does all of that.
 *
 * @packageDocumentation
 */

export type { Usage } from "./answer.js";
export type { NativeOptions, Sampling } from "./bindings.js";
export type { CachedModel } from "./cache.js";
export { cache, ModelCache } from "./cache.js";
export type {
  ChatCompletion,
  ChatCompletionChunk,
  ChatMessageInput,
  ChatRequest,
  ChatRequestBase,
  ChatStreamRequest,
  ChatTokenLogprob,
  ResponseFormat,
} from "./chat.js";
export { ChatCompletions } from "./chat.js";
export type { Recovery, TokenEvent } from "./client.js";
export type {
  Completion,
  CompletionLogprobs,
  CompletionRequest,
  CompletionRequestBase,
  CompletionStreamRequest,
} from "./completions.js";
export { Completions } from "./completions.js";
export type { GpuBufferLike, GpuDeviceLike } from "./device.js";
export type { LoadReport, Patience } from "./download.js";
export type {
  Adapter,
  EngineOptions,
  ForkOptions,
  GenerateOptions,
  KvBytes,
  Memory,
  PlanInfo,
} from "./engine.js";
export { createEngine, Engine } from "./engine.js";
export type { MoaErrorCode } from "./errors.js";
export { MOA_ERROR_CODES, MoaError } from "./errors.js";
export type { TokenLogprob } from "./logprobs.js";
export type { FileEntry, Manifest, PlanEntry, PlanFigures } from "./manifest.js";
export type { Probe, ProbedContext, ProbedModel } from "./probe.js";
export { probe } from "./probe.js";
export type { LoadPhase, LoadProgress } from "./progress.js";
export type { Snapshot } from "./protocol.js";
export type { RequestBase, RequestOptions, RequestProgress, StreamOptions } from "./request.js";
export type { FinishReason, GenerateStats, SavedRings } from "./session.js";
export type { ModelInput } from "./source.js";
export type { CacheKind } from "./store.js";
export type { ChatMessage } from "./text.js";
export { StreamDecoder, TextCodec } from "./text.js";
