/** `createEngine`: a bundle in, an engine in a worker out. */

import type { NativeOptions, Sampling } from "./bindings.js";
import { Bundle } from "./bundle.js";
import { ChatCompletions } from "./chat.js";
import { Client, type Recovery, type TokenEvent } from "./client.js";
import { Completions } from "./completions.js";
import type { GpuDeviceLike } from "./device.js";
import type { LoadReport, Patience } from "./download.js";
import { MoaError, throwIfAborted } from "./errors.js";
import { Link } from "./link.js";
import { requireWebGpu } from "./probe.js";
import type { LoadProgress } from "./progress.js";
import type { LoadedInfo, ModelRequest, Snapshot } from "./protocol.js";
import { type CompletionBackend, type RequestOptions, refuseUnknown } from "./request.js";
import type { GenerateRequest } from "./session.js";
import { type ModelInput, type ModelLocation, locate } from "./source.js";
import type { CacheKind } from "./store.js";
import type { TextCodec } from "./text.js";

/** Options of `createEngine`. */
export interface EngineOptions extends NativeOptions {
  /**
   * The bundle: the URL of its manifest or folder (relative ones are resolved against the page),
   * `"hf:organisation/name@revision"`, a tar file as a Blob, or a directory handle.
   */
  model: ModelInput;
  /**
   * The name of a plan in the bundle, `"dense"`, or a plan of your own as an object, as the compiler writes it in JSON.
   * By default the bundle's own choice.
   */
  plan?: string | object;
  /**
   * Prompt and answer together, in tokens, for the engine's whole life: it fixes every head's span and all memory.
   * By default the model's, 8192 at most.
   */
  contextLength?: number;
  /** Stops loading. */
  signal?: AbortSignal;
  onProgress?: (progress: LoadProgress) => void;
  /** Called when the GPU device was lost, and while another is made ready; the request that met it then goes on. */
  onRecovery?: (recovery: Recovery) => void;
  /** Where weights are kept on this device. By default the private file system, or the Cache API where there is none. */
  cache?: CacheKind;
  /**
   * Where the engine runs. `true`, the default where there are workers, starts the package's own; a `Worker` that runs
   * `moa-runtime/worker` (or calls `attachWorkerHandler`) is used, and ended with the engine; `false` is this thread.
   */
  worker?: boolean | Worker;
  /** A device of yours for the engine to run on, with `worker: false`; it stays yours, and is not replaced when lost. */
  device?: GpuDeviceLike;
  /** The wasm file, where it does not lie where the package has it. */
  wasmUrl?: string | URL;
  /** The wasm file for `response_format`, where it does not lie where the package has it. */
  grammarWasmUrl?: string | URL;
  /** GPU bytes for copies of earlier turns, from which an edit or another try starts. By default twice the KV cache. */
  turnSnapshotBytes?: number;
  /** How a download waits and gives up. */
  patience?: Partial<Patience>;
}

/** Options of `Engine.fork`; contextLength is the engine's own where it is not given, and the plan the bundle's choice. */
export type ForkOptions = Pick<EngineOptions, "plan" | "contextLength" | "signal" | "onRecovery" | "turnSnapshotBytes" | "prefillChunk" | "int8Kv">;

/** Options of `Engine.generate`. */
export interface GenerateOptions extends Sampling {
  /** The whole prompt. Tokens that the engine holds already are not computed again. */
  ids: readonly number[];
  maxTokens?: number;
  /** Ids that end the answer. By default the model's. */
  stopIds?: readonly number[];
  /** Reports how likely each token was, and so many of the likeliest beside it; each then takes a round trip. */
  logprobs?: number;
  signal?: AbortSignal;
}

/** Bytes of keys and values, known before anything is loaded. */
export interface KvBytes {
  /** Sinks and rings, slack included. */
  cache: number;
  /** One prefill chunk's keys and values. */
  scratch: number;
  total: number;
  /** A dense cache of the same context. */
  dense: number;
  kvDensity: number;
}

/** The plan in use. */
export interface PlanInfo {
  name: string;
  /** Mean over KV heads of visible keys over all keys, at the declared context. */
  kvDensity: number;
  sink: number;
  /** Span in tokens, `[layer][kv_head]`, at the declared context. */
  spans: number[][];
  /** Slots that a ring has beside its span, so that tokens can be taken back. */
  slack: number;
  /** The plan as the compiler writes it. */
  json: string;
}

/** What the engine holds in GPU memory. */
export interface Memory {
  kv: KvBytes;
  /** Bytes by purpose, `total` among them. Weights are counted by the engine that loaded them, not by its forks. */
  gpu: Record<string, number>;
  /** Bytes of the copies of earlier turns, beside the total. */
  turnSnapshotBytes: number;
}

/** The device that the engine runs on. */
export interface Adapter {
  name: string;
  driver: string;
  backend: string;
  software: boolean;
  /** The kernels in use, by their name among `EngineOptions.kernels`. */
  kernels: string;
}

/** Names of `Sampling`. */
const SAMPLING: ReadonlySet<string> = new Set([
  "temperature", "topK", "topP", "minP", "seed", "repetitionPenalty", "presencePenalty", "frequencyPenalty",
] satisfies (keyof Sampling)[]);

/** Names of `NativeOptions`. */
const NATIVE = ["prefillChunk", "defaultLimits", "powerPreference", "int8Kv", "kernels", "fused"] as const satisfies readonly (keyof NativeOptions)[];
/** Names of `ForkOptions`. */
const FORK = [
  "plan", "contextLength", "signal", "onRecovery", "turnSnapshotBytes", "prefillChunk", "int8Kv",
] as const satisfies readonly (keyof ForkOptions)[];
/** Names of `EngineOptions`. */
const OPTIONS: ReadonlySet<string> = new Set([
  ...FORK, ...NATIVE, "model", "onProgress", "cache", "worker", "device", "wasmUrl", "grammarWasmUrl", "patience",
] satisfies (keyof EngineOptions)[]);

/** The longest context that is declared where nobody asks. */
export const DEFAULT_CONTEXT = 8192;

/** Loads a bundle. Resolves when every byte was checked and the first token can be asked for. */
export async function createEngine(options: EngineOptions): Promise<Engine> {
  throwIfAborted(options.signal);
  refuseUnknown(options, OPTIONS);
  const location = locate(options.model);
  if (options.device && options.worker !== false) {
    throw new MoaError("bad-argument", "`device` needs `worker: false`: a device cannot be sent to a worker");
  }
  // A worker that was given may fail while the manifest is being read.
  const given = typeof options.worker === "object" ? Link.toWorker(options.worker) : undefined;
  try {
    return await create(options, location, given);
  } catch (error) {
    given?.end();
    throw error;
  }
}

async function create(options: EngineOptions, location: ModelLocation, given: Link | undefined): Promise<Engine> {
  const { signal, onProgress = () => undefined } = options;
  await requireWebGpu();
  const start = performance.now();
  onProgress({
    phase: "manifest", loaded: 0, total: 0, progress: 0, timeElapsed: 0, bytesPerSec: 0, fromCache: false,
    text: "Reading the manifest",
  });
  // What is on this device already need not be kept once more.
  const cache = location.kind === "url" && !location.url.startsWith("file:") ? options.cache : "none";
  const bundle = await Bundle.open(location, cache, signal);
  const { manifest, manifestJson } = bundle;
  const contextLength = options.contextLength ?? Math.min(manifest.model.max_context, DEFAULT_CONTEXT);
  const [plan, codec] = await Promise.all([bundle.choosePlan(options.plan, signal), bundle.codec(signal)]);
  await bundle.note();

  const link = given ?? (await Link.open(options.worker !== false && typeof Worker !== "undefined"));
  const model: ModelRequest = {
    location,
    manifestJson,
    shards: manifest.shards,
    wasmUrl: absolute(options.wasmUrl),
    grammarWasmUrl: absolute(options.grammarWasmUrl),
    cache,
    ...(options.device ? { device: options.device } : {}),
    patience: options.patience,
  };
  const before = (performance.now() - start) / 1000;
  const told = (progress: LoadProgress) => onProgress({ ...progress, timeElapsed: progress.timeElapsed + before });
  return await make({ bundle, codec, link }, { ...options, contextLength }, plan, model, told);
}

/** Has the host at the other end of the link make an engine; the link ends if it cannot. */
async function make(
  parts: Pick<EngineParts, "bundle" | "codec" | "link">,
  options: ForkOptions & NativeOptions & { contextLength: number },
  plan: { name: string; bytes: Uint8Array | undefined },
  model: ModelRequest | undefined,
  onProgress: (progress: LoadProgress) => void,
): Promise<Engine> {
  const { link } = parts;
  const client = new Client(link.port, options.onRecovery);
  void link.failure.then((what) => {
    client.die(new MoaError("internal", what, { hint: "are the worker's script and the wasm file on the server?" }));
  });
  const { contextLength, turnSnapshotBytes, signal } = options;
  try {
    const info = await client.load(
      {
        planName: plan.name,
        planBytes: plan.bytes,
        contextLength,
        options: Object.fromEntries(NATIVE.map((name) => [name, options[name]]).filter(([, value]) => value !== undefined)) as NativeOptions,
        turnSnapshotBytes,
      },
      model,
      onProgress,
      signal,
    );
    return new Engine({ ...parts, client, planName: plan.name, info });
  } catch (error) {
    // Where others stay at that place, an engine that was ready just then must go by itself.
    if (!link.end()) void client.unload(MoaError.from(error)).finally(() => link.close());
    throw error;
  }
}

function absolute(url: string | URL | undefined): string | undefined {
  return url === undefined ? undefined : new URL(url, globalThis.location?.href).href;
}

/** What an `Engine` is made of. */
interface EngineParts {
  bundle: Bundle;
  codec: TextCodec | undefined;
  link: Link;
  client: Client;
  planName: string;
  info: LoadedInfo;
}

/** One model on one device with one sequence. Requests run one after the other. */
export class Engine {
  /** Name of the model. */
  readonly modelName: string;
  /** Prompt and answer together, in tokens. */
  readonly contextLength: number;
  readonly adapter: Adapter;
  /** What loading took: bytes fetched and found, repairs, retries. */
  readonly loadReport: Readonly<LoadReport>;
  readonly chat: { readonly completions: ChatCompletions };
  /** Raw text, without a chat template. */
  readonly completions: Completions;
  readonly #parts: EngineParts;
  readonly #stopIds: readonly number[];
  #turnSnapshotBytes = 0;
  #unloading: Promise<void> | undefined;

  /** Use `createEngine`. @internal */
  constructor(parts: EngineParts) {
    const { info, codec, bundle } = parts;
    const { name: modelName, model: { eos: stopIds } } = bundle.manifest;
    this.#parts = parts;
    this.#stopIds = stopIds;
    this.modelName = modelName;
    this.contextLength = info.contextLength;
    this.adapter = JSON.parse(info.adapterJson) as Adapter;
    this.loadReport = info.report;
    const backend: CompletionBackend = { codec, modelName, stopIds, generate: (request, signal) => this.#run(request, signal) };
    this.chat = { completions: new ChatCompletions(backend) };
    this.completions = new Completions(backend);
  }

  /** Streams token ids. Greedy unless `temperature` is given. Leaving the loop stops the engine. */
  generate(options: GenerateOptions): AsyncIterable<TokenEvent> {
    const { ids, maxTokens = Infinity, stopIds = this.#stopIds, signal, logprobs, ...others } = options;
    refuseUnknown(others, SAMPLING);
    const given = Object.entries(others).filter(([, value]) => value !== undefined);
    return this.#run({ ids: [...ids], maxTokens, stopIds, sampling: Object.fromEntries(given), logprobs }, signal);
  }

  /** Logits of the token after `ids`, one per word of the vocabulary. */
  logits(ids: readonly number[], options: RequestOptions = {}): Promise<Float32Array> {
    return this.#parts.client.logits(ids, options.signal);
  }

  /** Token ids of a text, with the special tokens that the model expects around it only if asked for. */
  tokenize(text: string, options: { addSpecialTokens?: boolean } = {}): number[] {
    return this.#text().encode(text, options.addSpecialTokens ?? false);
  }

  /** The text of token ids. */
  detokenize(ids: readonly number[], options: { skipSpecialTokens?: boolean } = {}): string {
    return this.#text().decode(ids, options.skipSpecialTokens ?? true);
  }

  /** The plan in use. */
  plan(): PlanInfo {
    const { planJson, spansJson, slack } = this.#parts.info;
    const { sink, spans } = JSON.parse(spansJson) as { sink: number; spans: number[][] };
    return { name: this.#parts.planName, kvDensity: this.memory().kv.kvDensity, sink, spans, slack, json: planJson };
  }

  /** GPU memory, exact. */
  memory(): Memory {
    const { kvBytesJson, gpuBytesJson } = this.#parts.info;
    return {
      kv: JSON.parse(kvBytesJson) as KvBytes,
      gpu: JSON.parse(gpuBytesJson) as Record<string, number>,
      turnSnapshotBytes: this.#turnSnapshotBytes,
    };
  }

  /**
   * The keys and values of the sequence so far, to be taken up later: a plain object that IndexedDB can store. It fits
   * the same model, plan and context length.
   */
  snapshot(options: RequestOptions = {}): Promise<Snapshot> {
    return this.#parts.client.snapshot(options.signal);
  }

  /** Takes a snapshot up. A prompt that begins as the snapshot's did then prefills only what is new. */
  restore(snapshot: Snapshot, options: RequestOptions = {}): Promise<void> {
    return this.#parts.client.restore(snapshot, options.signal);
  }

  /**
   * Another engine of the same model that reads the same weights on the same device, under a plan and at a context of its
   * own: nothing is fetched, and only its keys, values and scratch take memory. It runs beside this one, in the same worker, and
   * stays when this one is unloaded. Memory beyond what the device was asked for throws `limits`: make the larger engine first.
   */
  async fork(options: ForkOptions = {}): Promise<Engine> {
    refuseUnknown(options, new Set<string>(FORK));
    const { bundle, codec, client, link } = this.#parts;
    const plan = await bundle.choosePlan(options.plan, options.signal);
    const fork = link.fork((port, transfer) => client.fork(port, transfer));
    const contextLength = options.contextLength ?? this.contextLength;
    return await make({ bundle, codec, link: fork }, { ...options, contextLength }, plan, undefined, () => undefined);
  }

  /** Frees the GPU's memory, but for weights that forks read, and ends the worker with its last engine. What still runs fails with `unloaded`. */
  unload(): Promise<void> {
    return (this.#unloading ??= this.#unload());
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.unload();
  }

  async #unload(): Promise<void> {
    const { client, link } = this.#parts;
    const gone = new MoaError("unloaded", "the engine was unloaded");
    // A worker's device and buffers go with it.
    if (link.end()) return client.die(gone);
    await client.unload(gone);
    link.close();
  }

  async *#run(request: GenerateRequest, signal: AbortSignal | undefined): AsyncGenerator<TokenEvent, void, void> {
    for await (const event of this.#parts.client.generate(request, signal)) {
      if (event.kind === "finished") this.#turnSnapshotBytes = event.stats.turnSnapshotBytes;
      yield event;
    }
  }

  #text(): TextCodec {
    if (this.#parts.codec) return this.#parts.codec;
    throw new MoaError("no-tokenizer", "this bundle has no tokenizer", { hint: "use generate() with ids of your own" });
  }
}
