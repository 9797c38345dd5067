/** `createEngine`: a bundle's URL in, an engine in a worker out. */

import type { NativeOptions, Sampling } from "./bindings.js";
import { type ChatBackend, ChatCompletions, type RequestOptions } from "./chat.js";
import { Client, type TokenEvent } from "./client.js";
import { fetchBytes, fetchText } from "./download.js";
import { MoaError, throwIfAborted } from "./errors.js";
import { type FileEntry, type Manifest, type PlanEntry, parseManifest } from "./manifest.js";
import { requireWebGpu } from "./probe.js";
import type { LoadProgress } from "./progress.js";
import type { LoadedInfo } from "./protocol.js";
import type { GenerateRequest } from "./session.js";
import { TextCodec } from "./text.js";

/** Options of `createEngine`. */
export interface EngineOptions extends NativeOptions {
  /** URL of the bundle's manifest; relative ones are resolved against the page. */
  model: string | URL;
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
  /** The wasm file, where it does not lie where the package has it. */
  wasmUrl?: string | URL;
  /** A worker that runs `moa-runtime/worker`, where a bundler must be told of it; the engine ends it. */
  worker?: Worker;
}

/** Options of `Engine.generate`. */
export interface GenerateOptions extends Sampling {
  /** The whole prompt. Tokens that the engine holds already are not computed again. */
  ids: readonly number[];
  maxTokens?: number;
  /** Ids that end the answer. By default the model's. */
  stopIds?: readonly number[];
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
  /** The plan as the compiler writes it. */
  json: string;
}

/** What the engine holds in GPU memory. */
export interface Memory {
  kv: KvBytes;
  /** Bytes by purpose, `total` among them. */
  gpu: Record<string, number>;
}

/** The device that the engine runs on. */
export interface Adapter {
  name: string;
  driver: string;
  backend: string;
  software: boolean;
}

/** The longest context that is declared where nobody asks. */
const DEFAULT_CONTEXT = 8192;

/** Loads a bundle. Resolves when every byte was checked and the first token can be asked for. */
export async function createEngine(options: EngineOptions): Promise<Engine> {
  const { signal, onProgress = () => undefined } = options;
  throwIfAborted(signal);
  await requireWebGpu();
  const manifestUrl = new URL(options.model, globalThis.location?.href);
  const start = performance.now();
  onProgress({
    phase: "manifest", loaded: 0, total: 0, progress: 0, timeElapsed: 0, bytesPerSec: 0, fromCache: false,
    text: "Reading the manifest",
  });
  const manifestJson = await fetchText(manifestUrl.href, signal);
  const manifest = parseManifest(manifestJson);
  const contextLength = options.contextLength ?? Math.min(manifest.model.max_context, DEFAULT_CONTEXT);
  const fetchEntry = (entry: FileEntry) => fetchChecked(new URL(entry.file, manifestUrl).href, entry, signal);
  const [plan, codec] = await Promise.all([
    choosePlan(manifest, options.plan, fetchEntry),
    loadCodec(manifest, fetchEntry),
  ]);

  const worker =
    options.worker ?? new Worker(new URL("./worker.js", import.meta.url), { type: "module", name: "moa-runtime" });
  const client = new Client(worker);
  const died = (what: string) => () =>
    client.die(new MoaError("internal", what, { hint: "are the worker's script and the wasm file on the server?" }));
  worker.addEventListener("error", died("the engine's worker could not be started or has failed"));
  worker.addEventListener("messageerror", died("a message of the engine's worker could not be read"));
  try {
    const { prefillChunk, defaultLimits, powerPreference } = options;
    const before = (performance.now() - start) / 1000;
    const info = await client.load(
      {
        manifestJson,
        shards: manifest.shards.map(({ file, bytes }) => ({ url: new URL(file, manifestUrl).href, bytes })),
        planName: plan.name,
        planBytes: plan.bytes,
        contextLength,
        wasmUrl: options.wasmUrl === undefined ? undefined : new URL(options.wasmUrl, globalThis.location?.href).href,
        options: {
          ...(prefillChunk === undefined ? {} : { prefillChunk }),
          ...(defaultLimits === undefined ? {} : { defaultLimits }),
          ...(powerPreference === undefined ? {} : { powerPreference }),
        },
      },
      (progress) => onProgress({ ...progress, timeElapsed: progress.timeElapsed + before }),
      signal,
    );
    return new Engine(client, worker, manifest, plan.name, codec, info);
  } catch (error) {
    worker.terminate();
    throw error;
  }
}

/** One model on one device with one sequence. Requests run one after the other. */
export class Engine {
  /** Name of the model. */
  readonly modelName: string;
  /** Prompt and answer together, in tokens. */
  readonly contextLength: number;
  readonly adapter: Adapter;
  readonly chat: { readonly completions: ChatCompletions };
  readonly #client: Client;
  readonly #worker: Worker;
  readonly #codec: TextCodec | undefined;
  readonly #stopIds: readonly number[];
  readonly #planName: string;
  readonly #info: LoadedInfo;

  /** Use `createEngine`. */
  constructor(
    client: Client,
    worker: Worker,
    manifest: Manifest,
    planName: string,
    codec: TextCodec | undefined,
    info: LoadedInfo,
  ) {
    this.#client = client;
    this.#worker = worker;
    this.#codec = codec;
    this.#stopIds = manifest.model.eos;
    this.#planName = planName;
    this.#info = info;
    this.modelName = manifest.name;
    this.contextLength = info.contextLength;
    this.adapter = JSON.parse(info.adapterJson) as Adapter;
    const backend: ChatBackend = {
      codec,
      modelName: manifest.name,
      stopIds: this.#stopIds,
      generate: (request, signal) => this.#run(request, signal),
    };
    this.chat = { completions: new ChatCompletions(backend) };
  }

  /** Streams token ids. Greedy unless `temperature` is given. Leaving the loop stops the engine. */
  generate(options: GenerateOptions): AsyncIterable<TokenEvent> {
    const { ids, maxTokens = Infinity, stopIds = this.#stopIds, signal, ...sampling } = options;
    return this.#run({ ids, maxTokens, stopIds, sampling }, signal);
  }

  /** Logits of the token after `ids`, one per word of the vocabulary. */
  logits(ids: readonly number[], options: RequestOptions = {}): Promise<Float32Array> {
    return this.#client.logits(ids, options.signal);
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
    const { sink, spans } = JSON.parse(this.#info.spansJson) as { sink: number; spans: number[][] };
    return { name: this.#planName, kvDensity: this.memory().kv.kvDensity, sink, spans, json: this.#info.planJson };
  }

  /** GPU memory, exact. */
  memory(): Memory {
    return {
      kv: JSON.parse(this.#info.kvBytesJson) as KvBytes,
      gpu: JSON.parse(this.#info.gpuBytesJson) as Record<string, number>,
    };
  }

  /** Frees the GPU's memory and ends the worker. What still runs fails with `unloaded`. */
  async unload(): Promise<void> {
    this.#client.die(new MoaError("unloaded", "the engine was unloaded"));
    // The worker's device and buffers go with it.
    this.#worker.terminate();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.unload();
  }

  #run(request: GenerateRequest, signal: AbortSignal | undefined): AsyncIterable<TokenEvent> {
    return this.#client.generate(request, signal);
  }

  #text(): TextCodec {
    if (this.#codec) return this.#codec;
    throw new MoaError("no-tokenizer", "this bundle has no tokenizer", { hint: "use generate() with ids of your own" });
  }
}

type FetchEntry = (entry: FileEntry) => Promise<Uint8Array>;

async function choosePlan(
  manifest: Manifest,
  plan: string | object | undefined,
  fetchEntry: FetchEntry,
): Promise<{ name: string; bytes: Uint8Array | undefined }> {
  if (typeof plan === "object") {
    const { name } = plan as { name?: unknown };
    return { name: typeof name === "string" ? name : "custom", bytes: new TextEncoder().encode(JSON.stringify(plan)) };
  }
  const name = plan ?? manifest.default_plan;
  const entry: PlanEntry | undefined = manifest.plans.find((candidate) => candidate.name === name);
  if (entry) return { name, bytes: await fetchEntry(entry) };
  if (name === "dense") return { name, bytes: undefined };
  const names = ["dense", ...manifest.plans.map((candidate) => candidate.name)].join(", ");
  throw new MoaError("bad-plan", `the bundle has no plan named "${name}"`, { hint: `its plans are: ${names}` });
}

async function loadCodec(manifest: Manifest, fetchEntry: FetchEntry): Promise<TextCodec | undefined> {
  if (!manifest.tokenizer) return undefined;
  const read = async (name: string) => {
    const entry = manifest.files.find((candidate) => candidate.file === name);
    if (!entry) throw new MoaError("bad-manifest", `the manifest cannot be used: ${name} is not among its files`);
    return new TextDecoder().decode(await fetchEntry(entry));
  };
  const [tokenizer, config] = await Promise.all([read(manifest.tokenizer.tokenizer), read(manifest.tokenizer.config)]);
  return new TextCodec(tokenizer, config);
}

/** Fetches a file whole and checks it against the manifest. */
async function fetchChecked(url: string, entry: FileEntry, signal: AbortSignal | undefined): Promise<Uint8Array> {
  const bytes = await fetchBytes(url, signal);
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes as BufferSource));
  const got = [...digest].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  if (got !== entry.sha256) {
    throw new MoaError("hash-mismatch", `${entry.file} is damaged: its checksum is not the manifest's`, {
      hint: "fetch the bundle again, or check how the server changes files",
    });
  }
  return bytes;
}
