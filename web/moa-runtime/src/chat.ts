/**
 * `chat.completions.create` in OpenAI's shapes. An option that is not supported throws and is named;
 * none is ignored in silence.
 */

import type { TokenEvent } from "./client.js";
import { MoaError } from "./errors.js";
import type { FinishReason, GenerateRequest, GenerateStats } from "./session.js";
import { type ChatMessage, StreamDecoder, type TextCodec } from "./text.js";

/** Options that both forms of the request take. */
export interface ChatRequestBase {
  messages: readonly ChatMessage[];
  /** Tokens to generate at most; by default all that the context has room for. */
  max_tokens?: number | null;
  /** The newer name of `max_tokens`. */
  max_completion_tokens?: number | null;
  /** 0 is greedy; 1 by default, as in OpenAI's API. */
  temperature?: number | null;
  top_p?: number | null;
  top_k?: number | null;
  min_p?: number | null;
  seed?: number | null;
  /** Texts that end the answer and are not part of it. */
  stop?: string | readonly string[] | null;
  /** Accepted and repeated in the answer; the engine holds one model. */
  model?: string;
  /** Only 1. */
  n?: 1 | null;
}

/** The whole answer at once. */
export interface ChatRequest extends ChatRequestBase {
  stream?: false | null;
}

/** The answer as it comes. */
export interface ChatStreamRequest extends ChatRequestBase {
  stream: true;
  stream_options?: { include_usage?: boolean } | null;
}

/** How far a request is, in tokens. */
export interface RequestProgress {
  phase: "prefill" | "decode";
  done: number;
  /** Tokens of the prompt that are not in the cache yet, or the most that may be generated. */
  total: number;
}

/** OpenAI's second argument. */
export interface RequestOptions {
  signal?: AbortSignal | undefined;
  /** Called after every prefill chunk and every batch of tokens. */
  onProgress?: ((progress: RequestProgress) => void) | undefined;
}

/** Token counts, and the times that OpenAI does not give. */
export interface Usage {
  prompt_tokens: number;
  completion_tokens: number;
  total_tokens: number;
  prompt_tokens_details: { cached_tokens: number };
  extra: { prefill_ms: number; decode_ms: number; decode_tokens_per_s: number };
}

/** One piece of a streamed answer. */
export interface ChatCompletionChunk {
  id: string;
  object: "chat.completion.chunk";
  created: number;
  model: string;
  choices: { index: 0; delta: { role?: "assistant"; content?: string }; finish_reason: FinishReason | null }[];
  /** Only in the last chunk, and only with `stream_options.include_usage`. */
  usage?: Usage;
}

/** A whole answer. */
export interface ChatCompletion {
  id: string;
  object: "chat.completion";
  created: number;
  model: string;
  choices: { index: 0; message: { role: "assistant"; content: string }; finish_reason: FinishReason }[];
  usage: Usage;
}

/** What completions need of an engine. */
export interface ChatBackend {
  readonly codec: TextCodec | undefined;
  readonly modelName: string;
  readonly stopIds: readonly number[];
  generate(request: GenerateRequest, signal: AbortSignal | undefined): AsyncIterable<TokenEvent>;
}

const SUPPORTED: ReadonlySet<string> = new Set([
  "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "stop", "model",
  "n", "stream", "stream_options",
]);

/** `engine.chat.completions`. */
export class ChatCompletions {
  readonly #backend: ChatBackend;

  constructor(backend: ChatBackend) {
    this.#backend = backend;
  }

  create(request: ChatStreamRequest, options?: RequestOptions): Promise<AsyncGenerator<ChatCompletionChunk, void, void>>;
  create(request: ChatRequest, options?: RequestOptions): Promise<ChatCompletion>;
  async create(
    request: ChatRequest | ChatStreamRequest,
    options: RequestOptions = {},
  ): Promise<ChatCompletion | AsyncGenerator<ChatCompletionChunk, void, void>> {
    const prepared = this.#prepare(request);
    return request.stream === true
      ? this.#stream(prepared, request.stream_options?.include_usage === true, options)
      : this.#whole(prepared, options);
  }

  #prepare(request: ChatRequest | ChatStreamRequest): Prepared {
    for (const [name, value] of Object.entries(request)) {
      if (value !== undefined && value !== null && !SUPPORTED.has(name)) throw unsupported(name);
    }
    if (request.n !== undefined && request.n !== null && request.n !== 1) throw unsupported("n > 1");
    const { codec, stopIds, modelName } = this.#backend;
    if (!codec) {
      throw new MoaError("no-tokenizer", "this bundle has no tokenizer", { hint: "use generate() with ids of your own" });
    }
    if (!Array.isArray(request.messages) || request.messages.length === 0) {
      throw new MoaError("bad-argument", "`messages` must hold at least one message");
    }
    const stop = request.stop ?? [];
    return {
      id: `chatcmpl-${crypto.randomUUID()}`,
      created: Math.floor(Date.now() / 1000),
      model: request.model ?? modelName,
      codec,
      stops: (typeof stop === "string" ? [stop] : stop).filter((text) => text !== ""),
      tokens: {
        // The template writes the special tokens itself.
        ids: codec.encode(codec.render(request.messages), false),
        maxTokens: inRange("max_tokens", request.max_completion_tokens ?? request.max_tokens ?? Infinity, 1, Infinity),
        sampling: {
          temperature: inRange("temperature", request.temperature ?? 1, 0, Infinity),
          topP: inRange("top_p", request.top_p ?? 1, 0, 1),
          topK: inRange("top_k", request.top_k ?? 0, 0, Infinity),
          minP: inRange("min_p", request.min_p ?? 0, 0, 1),
          seed: request.seed ?? randomSeed(),
        },
        stopIds,
      },
    };
  }

  async *#stream(
    prepared: Prepared,
    includeUsage: boolean,
    options: RequestOptions,
  ): AsyncGenerator<ChatCompletionChunk, void, void> {
    const { id, created, model } = prepared;
    const chunk = (
      delta: { role?: "assistant"; content?: string },
      finish_reason: FinishReason | null = null,
    ): ChatCompletionChunk => ({
      id, created, model, object: "chat.completion.chunk", choices: [{ index: 0, delta, finish_reason }],
    });
    yield chunk({ role: "assistant" });
    for await (const event of this.#text(prepared, options)) {
      if (event.text !== "") yield chunk({ content: event.text });
      if (event.end) {
        yield chunk({}, event.end.reason);
        if (includeUsage) yield { ...chunk({}), choices: [], usage: usageOf(event.end.stats) };
      }
    }
  }

  async #whole(prepared: Prepared, options: RequestOptions): Promise<ChatCompletion> {
    const { id, created, model } = prepared;
    let content = "";
    for await (const event of this.#text(prepared, options)) {
      content += event.text;
      if (event.end) {
        return {
          id, created, model, object: "chat.completion",
          choices: [{ index: 0, message: { role: "assistant", content }, finish_reason: event.end.reason }],
          usage: usageOf(event.end.stats),
        };
      }
    }
    throw new MoaError("internal", "the answer has no end");
  }

  /** Pieces of text up to a stop text, a stop id or the limit. */
  async *#text(prepared: Prepared, options: RequestOptions): AsyncGenerator<TextEvent, void, void> {
    const decoder = new StreamDecoder(prepared.codec);
    const longest = Math.max(0, ...prepared.stops.map((stop) => stop.length));
    const start = performance.now();
    let firstToken: number | undefined;
    let completionTokens = 0;
    let cachedTokens = 0;
    /** Decoded, but perhaps the beginning of a stop text. */
    let held = "";
    for await (const event of this.#backend.generate(prepared.tokens, options.signal)) {
      if (event.kind === "prefilled") {
        cachedTokens = prepared.tokens.ids.length - event.total;
        options.onProgress?.({ phase: "prefill", done: event.done, total: event.total });
        continue;
      }
      if (event.kind === "tokens") {
        firstToken ??= performance.now();
        completionTokens += event.ids.length;
        options.onProgress?.({ phase: "decode", done: completionTokens, total: prepared.tokens.maxTokens });
      }
      held += event.kind === "tokens" ? decoder.push(event.ids) : decoder.flush();
      const cut = firstStop(held, prepared.stops);
      if (cut >= 0) {
        // Leaving the loop stops the engine.
        const now = performance.now();
        yield {
          text: held.slice(0, cut),
          end: {
            reason: "stop",
            stats: {
              promptTokens: prepared.tokens.ids.length,
              cachedTokens,
              completionTokens,
              prefillMs: (firstToken ?? now) - start,
              decodeMs: now - (firstToken ?? now),
            },
          },
        };
        return;
      }
      if (event.kind === "finished") {
        yield { text: held, end: event };
        return;
      }
      const safe = Math.max(0, held.length - Math.max(0, longest - 1));
      yield { text: held.slice(0, safe), end: undefined };
      held = held.slice(safe);
    }
  }
}

interface Prepared {
  id: string;
  created: number;
  model: string;
  codec: TextCodec;
  stops: readonly string[];
  tokens: GenerateRequest;
}

interface TextEvent {
  text: string;
  end: { reason: FinishReason; stats: GenerateStats } | undefined;
}

function firstStop(text: string, stops: readonly string[]): number {
  const found = stops.map((stop) => text.indexOf(stop)).filter((at) => at >= 0);
  return found.length === 0 ? -1 : Math.min(...found);
}

function usageOf(stats: GenerateStats): Usage {
  // The first token comes with the prefill's logits; the rate is that of the others.
  const decoded = Math.max(0, stats.completionTokens - 1);
  return {
    prompt_tokens: stats.promptTokens,
    completion_tokens: stats.completionTokens,
    total_tokens: stats.promptTokens + stats.completionTokens,
    prompt_tokens_details: { cached_tokens: stats.cachedTokens },
    extra: {
      prefill_ms: stats.prefillMs,
      decode_ms: stats.decodeMs,
      decode_tokens_per_s: stats.decodeMs > 0 ? (1000 * decoded) / stats.decodeMs : 0,
    },
  };
}

function inRange(name: string, value: number, low: number, high: number): number {
  if (typeof value === "number" && value >= low && value <= high) return value;
  throw new MoaError("bad-argument", `\`${name}\` must be a number from ${low} to ${high}, got ${String(value)}`);
}

function unsupported(name: string): MoaError {
  return new MoaError("unsupported-option", `\`${name}\` is not supported`, { hint: "leave it out" });
}

function randomSeed(): number {
  return crypto.getRandomValues(new Uint32Array(1))[0] as number;
}
