/** `chat.completions.create` in OpenAI's shapes. */

import { type Usage, answer } from "./answer.js";
import type { TokenLogprob } from "./logprobs.js";
import { MoaError } from "./errors.js";
import {
  BASE_OPTIONS, type CompletionBackend, type Prepared, type RequestBase, type RequestOptions, type StreamOptions,
  codecOf, inRange, prepare, refuseUnknown, unsupported,
} from "./request.js";
import type { FinishReason } from "./session.js";
import type { ChatMessage, TextCodec } from "./text.js";

/** A message as requests take it: its content a text, or a list of texts. */
export interface ChatMessageInput {
  role: "system" | "developer" | "user" | "assistant" | (string & {});
  content?: string | readonly { type: string; text?: string }[] | null;
}

/** OpenAI's `response_format`. `name`, `description` and `strict` change nothing: every schema is followed. */
export type ResponseFormat =
  | { type: "text" }
  | { type: "json_object" }
  | { type: "json_schema"; json_schema: { name?: string; description?: string; strict?: boolean | null; schema: object } };

/** Options that both forms of the request take. */
export interface ChatRequestBase extends RequestBase {
  messages: readonly ChatMessageInput[];
  /** The newer name of `max_tokens`. */
  max_completion_tokens?: number | null;
  /** Whether to report how likely each token was. */
  logprobs?: boolean | null;
  /** How many of the likeliest tokens to report beside each, up to 20; needs `logprobs`. */
  top_logprobs?: number | null;
  /** Variables for the bundle's chat template. */
  chat_template_kwargs?: Record<string, unknown> | null;
  /**
   * What the answer must be: text, any JSON object, or JSON of a schema (a large part of JSON Schema, `$ref` within the
   * schema included). Tokens that do not fit are not chosen; each token takes a round trip to the GPU. Without an
   * `x-guidance` of its own, JSON is written on one line.
   */
  response_format?: ResponseFormat | null;
  /** Stops the answer, as the one in the second argument does. */
  signal?: AbortSignal | null;
}

/** The whole answer at once. */
export interface ChatRequest extends ChatRequestBase {
  stream?: false | null;
}

/** The answer as it comes. */
export interface ChatStreamRequest extends ChatRequestBase {
  stream: true;
  stream_options?: StreamOptions | null;
}

/** How likely a token was. */
export interface ChatTokenLogprob {
  token: string;
  /** UTF-8 bytes of the token's text. */
  bytes: number[];
  logprob: number;
  top_logprobs: { token: string; bytes: number[]; logprob: number }[];
}

/** One piece of a streamed answer. */
export interface ChatCompletionChunk {
  id: string;
  object: "chat.completion.chunk";
  created: number;
  model: string;
  choices: {
    index: 0;
    delta: { role?: "assistant"; content?: string };
    finish_reason: FinishReason | null;
    logprobs?: { content: ChatTokenLogprob[] } | null;
  }[];
  /** Only in the last chunk, and only with `stream_options.include_usage`. */
  usage?: Usage;
}

/** A whole answer. */
export interface ChatCompletion {
  id: string;
  object: "chat.completion";
  created: number;
  model: string;
  choices: {
    index: 0;
    message: { role: "assistant"; content: string; refusal: null };
    finish_reason: FinishReason;
    logprobs: { content: ChatTokenLogprob[] } | null;
  }[];
  usage: Usage;
}

const SUPPORTED: ReadonlySet<string> = new Set([
  ...BASE_OPTIONS, "messages", "max_completion_tokens", "logprobs", "top_logprobs", "chat_template_kwargs", "response_format",
]);

/** `engine.chat.completions`. */
export class ChatCompletions {
  readonly #backend: CompletionBackend;

  /** An engine makes it. @internal */
  constructor(backend: CompletionBackend) {
    this.#backend = backend;
  }

  create(request: ChatStreamRequest, options?: RequestOptions): Promise<AsyncGenerator<ChatCompletionChunk, void, void>>;
  create(request: ChatRequest, options?: RequestOptions): Promise<ChatCompletion>;
  create(
    request: ChatRequest | ChatStreamRequest,
    options?: RequestOptions,
  ): Promise<ChatCompletion | AsyncGenerator<ChatCompletionChunk, void, void>>;
  async create(
    request: ChatRequest | ChatStreamRequest,
    options: RequestOptions = {},
  ): Promise<ChatCompletion | AsyncGenerator<ChatCompletionChunk, void, void>> {
    const prepared = this.#prepare(request, options);
    return request.stream === true ? this.#stream(prepared) : this.#whole(prepared);
  }

  #prepare(request: ChatRequest | ChatStreamRequest, options: RequestOptions): Prepared {
    refuseUnknown(request, SUPPORTED);
    const schema = schemaOf(request.response_format);
    const codec = codecOf(this.#backend);
    if (!Array.isArray(request.messages) || request.messages.length === 0) {
      throw new MoaError("bad-argument", "`messages` must hold at least one message");
    }
    const text = codec.render(request.messages.map(plainMessage), request.chat_template_kwargs ?? {});
    // The template writes the special tokens itself.
    const ids = codec.encode(text, false);
    if (request.top_logprobs != null && request.logprobs !== true) {
      throw new MoaError("bad-argument", "`top_logprobs` needs `logprobs: true`");
    }
    const logprobs = request.logprobs === true ? inRange("top_logprobs", request.top_logprobs ?? 0, 0, 20) : undefined;
    return prepare("chatcmpl", request, ids, logprobs, this.#backend, options, schema);
  }

  async *#stream(prepared: Prepared): AsyncGenerator<ChatCompletionChunk, void, void> {
    const { id, created, model, tokens } = prepared;
    const chunk = (
      delta: { role?: "assistant"; content?: string },
      finish_reason: FinishReason | null = null,
      logprobs: { content: ChatTokenLogprob[] } | null = null,
    ): ChatCompletionChunk => ({
      id, created, model, object: "chat.completion.chunk",
      choices: [{ index: 0, delta, finish_reason, ...(tokens.logprobs === undefined ? {} : { logprobs }) }],
    });
    yield chunk({ role: "assistant", content: "" });
    for await (const { text, logprobs, end } of answer(prepared, this.#backend)) {
      if (text !== "" || logprobs.length > 0) {
        yield chunk({ content: text }, null, { content: logprobs.map((token) => describe(token, prepared.codec)) });
      }
      if (end) {
        yield chunk({}, end.reason);
        if (prepared.includeUsage) yield { ...chunk({}), choices: [], usage: end.usage };
      }
    }
  }

  async #whole(prepared: Prepared): Promise<ChatCompletion> {
    const { id, created, model, codec, tokens } = prepared;
    let content = "";
    const logprobs: ChatTokenLogprob[] = [];
    for await (const piece of answer(prepared, this.#backend)) {
      content += piece.text;
      logprobs.push(...piece.logprobs.map((token) => describe(token, codec)));
      if (!piece.end) continue;
      return {
        id, created, model, object: "chat.completion",
        choices: [{
          index: 0,
          message: { role: "assistant", content, refusal: null },
          finish_reason: piece.end.reason,
          logprobs: tokens.logprobs === undefined ? null : { content: logprobs },
        }],
        usage: piece.end.usage,
      };
    }
    throw new MoaError("internal", "the answer has no end");
  }
}

/** The JSON schema that a format asks for, as text; nothing for text. */
function schemaOf(format: ResponseFormat | null | undefined): string | undefined {
  if (format == null || format.type === "text") return undefined;
  // On one line: small models otherwise like to write spaces without end.
  const layout = { "x-guidance": { whitespace_flexible: false, item_separator: ", ", key_separator: ": " } };
  if (format.type === "json_object") return JSON.stringify({ ...layout, type: "object" });
  if (format.type !== "json_schema") throw unsupported(`response_format: ${String((format as { type: unknown }).type)}`);
  const { schema } = format.json_schema ?? {};
  if (typeof schema !== "object" || schema === null) throw new MoaError("bad-argument", "`response_format.json_schema.schema` must be a JSON schema");
  return JSON.stringify({ ...layout, ...schema });
}

function plainMessage({ role, content, ...rest }: ChatMessageInput, index: number): ChatMessage {
  const other = Object.entries(rest).find(([, value]) => value != null);
  if (other) throw unsupported(`messages[${index}].${other[0]}`);
  if (content == null || typeof content === "string") return { role, content: content ?? "" };
  const texts = content.map((part, at) => {
    if (part.type !== "text" || typeof part.text !== "string") {
      throw unsupported(`messages[${index}].content[${at}] of type ${part.type}`, "the model reads text alone");
    }
    return part.text;
  });
  return { role, content: texts.join("") };
}

function describe({ id, logprob, top }: TokenLogprob, codec: TextCodec): ChatTokenLogprob {
  const entry = (id: number, logprob: number) => {
    const token = codec.decode([id], false);
    return { token, bytes: [...new TextEncoder().encode(token)], logprob };
  };
  return { ...entry(id, logprob), top_logprobs: top.map((one) => entry(one.id, one.logprob)) };
}
