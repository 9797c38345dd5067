/**
 * The options of a request in OpenAI's names, checked and turned into the engine's. An option that is not supported
 * throws and is named; none is ignored in silence.
 */

import type { TokenEvent } from "./client.js";
import { MoaError } from "./errors.js";
import type { GenerateRequest } from "./session.js";
import type { TextCodec } from "./text.js";

/** Options that chat and plain completions share. */
export interface RequestBase {
  /** Tokens to generate at most; by default all that the context has room for. */
  max_tokens?: number | null;
  /** 0 is greedy; 1 by default, as in OpenAI's API. */
  temperature?: number | null;
  top_p?: number | null;
  top_k?: number | null;
  min_p?: number | null;
  /** Taken from the logits of tokens that the answer holds already, -2 to 2. */
  presence_penalty?: number | null;
  /** The same, as often as the answer holds the token, -2 to 2. */
  frequency_penalty?: number | null;
  /** Divides the logits of tokens in prompt and answer; above 1 makes them less likely. */
  repetition_penalty?: number | null;
  /** The same prompt, seed and options give the same answer. */
  seed?: number | null;
  /** Texts that end the answer and are not part of it. */
  stop?: string | readonly string[] | null;
  /** Accepted and repeated in the answer; the engine holds one model. */
  model?: string | null;
  /** Only 1. */
  n?: 1 | null;
}

/** Options of a streamed answer. */
export interface StreamOptions {
  /** Whether a last chunk with the token counts follows. */
  include_usage?: boolean;
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

/** What completions need of an engine. */
export interface CompletionBackend {
  readonly codec: TextCodec | undefined;
  readonly modelName: string;
  readonly stopIds: readonly number[];
  generate(request: GenerateRequest, signal: AbortSignal | undefined): AsyncIterable<TokenEvent>;
}

/** A request that was checked. */
export interface Prepared {
  id: string;
  created: number;
  model: string;
  codec: TextCodec;
  stops: readonly string[];
  tokens: GenerateRequest;
  includeUsage: boolean;
  signal: AbortSignal | undefined;
  onProgress: ((progress: RequestProgress) => void) | undefined;
}

/** Names that both kinds of request know. */
export const BASE_OPTIONS = [
  "max_tokens", "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty",
  "seed", "stop", "model", "n", "stream", "stream_options", "signal",
] as const;

/** Throws for the first option that is not among `supported`. An absent one may be spelt `null`. */
export function refuseUnknown(request: object, supported: ReadonlySet<string>): void {
  for (const [name, value] of Object.entries(request)) {
    if (value !== undefined && value !== null && !supported.has(name)) throw unsupported(name);
  }
  const { n } = request as { n?: unknown };
  if (n !== undefined && n !== null && n !== 1) throw unsupported("n > 1");
}

/** The error of an option that is valid elsewhere. */
export function unsupported(name: string, hint = "leave it out"): MoaError {
  return new MoaError("unsupported-option", `\`${name}\` is not supported`, { hint });
}

/** The bundle's tokenizer, or the error that there is none. */
export function codecOf(backend: CompletionBackend): TextCodec {
  if (backend.codec) return backend.codec;
  throw new MoaError("no-tokenizer", "this bundle has no tokenizer", { hint: "use generate() with ids of your own" });
}

/**
 * A request whose options are the engine's. `logprobs` is the number of likeliest tokens to report, if any; `schema` is a
 * JSON schema that the answer must follow.
 */
export function prepare(
  kind: string,
  request: RequestBase & { max_completion_tokens?: number | null; stream?: unknown; stream_options?: StreamOptions | null; signal?: AbortSignal | null },
  ids: readonly number[],
  logprobs: number | undefined,
  backend: CompletionBackend,
  options: RequestOptions,
  schema?: string,
): Prepared {
  if (request.stream_options != null) {
    if (request.stream !== true) throw new MoaError("bad-argument", "`stream_options` needs `stream: true`");
    for (const [name, value] of Object.entries(request.stream_options)) {
      if (name !== "include_usage" && value != null) throw unsupported(`stream_options.${name}`);
    }
  }
  const stop = request.stop ?? [];
  const stops = (typeof stop === "string" ? [stop] : [...stop]).filter((text) => text !== "");
  if (stops.some((text) => typeof text !== "string")) throw new MoaError("bad-argument", "`stop` must be a text or a list of texts");
  const presence = inRange("presence_penalty", request.presence_penalty ?? 0, -2, 2);
  const frequency = inRange("frequency_penalty", request.frequency_penalty ?? 0, -2, 2);
  const repetition = inRange("repetition_penalty", request.repetition_penalty ?? 1, 0.01, 100);
  const codec = codecOf(backend);
  const most = request.max_completion_tokens ?? request.max_tokens;
  const seed = request.seed ?? crypto.getRandomValues(new Uint32Array(1))[0] as number;
  if (!Number.isSafeInteger(seed) || seed < 0) throw new MoaError("bad-argument", `\`seed\` must be a whole number from 0 on, got ${String(seed)}`);
  return {
    id: `${kind}-${crypto.randomUUID()}`,
    created: Math.floor(Date.now() / 1000),
    model: request.model ?? backend.modelName,
    codec,
    stops,
    tokens: {
      ids,
      maxTokens: most == null ? Infinity : Math.floor(inRange("max_tokens", most, 1, Infinity)),
      sampling: {
        temperature: inRange("temperature", request.temperature ?? 1, 0, Infinity),
        topP: inRange("top_p", request.top_p ?? 1, 0, 1),
        topK: inRange("top_k", request.top_k ?? 0, 0, Infinity),
        minP: inRange("min_p", request.min_p ?? 0, 0, 1),
        seed,
        ...(presence === 0 ? {} : { presencePenalty: presence }),
        ...(frequency === 0 ? {} : { frequencyPenalty: frequency }),
        ...(repetition === 1 ? {} : { repetitionPenalty: repetition }),
      },
      stopIds: backend.stopIds,
      ...(schema === undefined ? {} : { constraint: { schema, vocabulary: codec.vocabulary() } }),
      ...(logprobs === undefined ? {} : { logprobs }),
    },
    includeUsage: request.stream_options?.include_usage === true,
    signal: bothSignals(options.signal, request.signal ?? undefined),
    onProgress: options.onProgress,
  };
}

/** A number in a range, or the error that names it. */
export function inRange(name: string, value: number, low: number, high: number): number {
  if (typeof value === "number" && value >= low && value <= high) return value;
  throw new MoaError("bad-argument", `\`${name}\` must be a number from ${low} to ${high}, got ${String(value)}`);
}

function bothSignals(a: AbortSignal | undefined, b: AbortSignal | undefined): AbortSignal | undefined {
  return a && b ? AbortSignal.any([a, b]) : (a ?? b);
}
