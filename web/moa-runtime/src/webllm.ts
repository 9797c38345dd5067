/**
 * For pages that were written for WebLLM: the same factory and the same calls over this package's engine. Change the
 * import, and name a bundle's URL where WebLLM had a model's name. What this engine cannot do throws and is named.
 */

import type { ChatCompletion, ChatCompletionChunk, ChatRequest, ChatStreamRequest } from "./chat.js";
import type { Completion, CompletionRequest, CompletionStreamRequest } from "./completions.js";
import { type Engine, type EngineOptions, createEngine } from "./engine.js";
import { MoaError } from "./errors.js";
import type { LoadProgress } from "./progress.js";

/** What of WebLLM's engine configuration is used. */
export interface WebLlmConfig {
  initProgressCallback?: (report: LoadProgress) => void;
  /** Names for bundles: `model` is a manifest's URL. */
  appConfig?: { model_list: { model_id: string; model: string }[] };
  /** Options of `createEngine` beside those. */
  moa?: Omit<EngineOptions, "model" | "onProgress" | "contextLength">;
}

/** What of WebLLM's chat options is used. */
export interface WebLlmChatOptions {
  context_window_size?: number;
}

/** The end of an answer that was interrupted, as WebLLM says it. */
export type WebLlmChunk = Omit<ChatCompletionChunk, "choices"> & {
  choices: (Omit<ChatCompletionChunk["choices"][number], "finish_reason"> & { finish_reason: "stop" | "length" | "abort" | null })[];
};

/** WebLLM's request types promise more than this engine does: what it cannot do throws. */
export type Loose<R> = Omit<R, "messages" | "n" | "response_format"> & { messages: readonly object[]; n?: number | null; response_format?: object | null };

/** `chat.completions.create`. */
export interface ChatCreate {
  (request: Loose<ChatStreamRequest>): Promise<AsyncIterable<WebLlmChunk>>;
  (request: Loose<ChatRequest>): Promise<ChatCompletion>;
}

/** `completions.create`. */
export interface TextCreate {
  (request: CompletionStreamRequest): Promise<AsyncIterable<Completion>>;
  (request: CompletionRequest): Promise<Completion>;
}

/** Loads a bundle: WebLLM's `CreateMLCEngine`. */
export async function CreateMLCEngine(
  modelId: string,
  config: WebLlmConfig = {},
  chatOptions: WebLlmChatOptions = {},
): Promise<WebLlmEngine> {
  const engine = new WebLlmEngine(config);
  await engine.reload(modelId, chatOptions);
  return engine;
}

/** WebLLM's calls. */
export class WebLlmEngine {
  readonly chat: { readonly completions: { readonly create: ChatCreate } };
  readonly completions: { readonly create: TextCreate };
  readonly #config: WebLlmConfig;
  #engine: Engine | undefined;
  #running = new AbortController();
  #message = "";
  #stats = "";

  constructor(config: WebLlmConfig = {}) {
    this.#config = { ...config };
    const chat = async (request: ChatRequest | ChatStreamRequest) => {
      const { signal } = this.#running;
      this.#message = "";
      if (request.stream === true) return this.#stream(await this.#loaded().chat.completions.create(request, { signal }), signal);
      const answer = await this.#loaded().chat.completions.create(request, { signal });
      this.#note(answer.choices[0]?.message.content ?? "", answer.usage);
      return answer;
    };
    const text = async (request: CompletionRequest | CompletionStreamRequest) =>
      request.stream === true
        ? this.#loaded().completions.create(request, { signal: this.#running.signal })
        : this.#loaded().completions.create(request, { signal: this.#running.signal });
    this.chat = { completions: { create: chat as ChatCreate } };
    this.completions = { create: text as TextCreate };
  }

  setInitProgressCallback(callback: (report: LoadProgress) => void): void {
    this.#config.initProgressCallback = callback;
  }

  getInitProgressCallback(): ((report: LoadProgress) => void) | undefined {
    return this.#config.initProgressCallback;
  }

  async reload(modelId: string, chatOptions: WebLlmChatOptions = {}): Promise<void> {
    await this.unload();
    const { initProgressCallback, appConfig, moa } = this.#config;
    const model = appConfig?.model_list.find(({ model_id }) => model_id === modelId)?.model ?? modelId;
    this.#engine = await createEngine({
      ...moa,
      model,
      ...(initProgressCallback ? { onProgress: initProgressCallback } : {}),
      ...(chatOptions.context_window_size === undefined ? {} : { contextLength: chatOptions.context_window_size }),
    });
  }

  /** Ends what runs; a stream then ends with `finish_reason: "abort"`. */
  interruptGenerate(): void {
    this.#running.abort();
    this.#running = new AbortController();
  }

  /** Nothing to forget: a request brings its whole conversation. */
  async resetChat(): Promise<void> {
    this.#message = "";
  }

  async getMessage(): Promise<string> {
    return this.#message;
  }

  async runtimeStatsText(): Promise<string> {
    return this.#stats;
  }

  async unload(): Promise<void> {
    const engine = this.#engine;
    this.#engine = undefined;
    await engine?.unload();
  }

  async *#stream(chunks: AsyncIterable<ChatCompletionChunk>, signal: AbortSignal): AsyncGenerator<WebLlmChunk, void, void> {
    let last: ChatCompletionChunk | undefined;
    try {
      for await (const chunk of chunks) {
        last = chunk;
        this.#message += chunk.choices[0]?.delta.content ?? "";
        if (chunk.usage) this.#note(this.#message, chunk.usage);
        yield chunk;
      }
    } catch (error) {
      if (!signal.aborted || !last || MoaError.from(error).code !== "aborted") throw error;
      yield { ...last, choices: [{ index: 0, delta: {}, finish_reason: "abort" }] };
    }
  }

  #note(message: string, { extra }: ChatCompletion["usage"]): void {
    this.#message = message;
    this.#stats = `prefill: ${extra.prefill_tokens_per_s.toFixed(4)} tokens/sec, decoding: ${extra.decode_tokens_per_s.toFixed(4)} tokens/sec`;
  }

  #loaded(): Engine {
    if (this.#engine) return this.#engine;
    throw new MoaError("unloaded", "no model is loaded", { hint: "call reload() first" });
  }
}
