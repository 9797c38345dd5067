/** `completions.create`: raw text in, its continuation out, in the shape of OpenAI's older API. */

import { type Usage, answer } from "./answer.js";
import type { TokenLogprob } from "./logprobs.js";
import { MoaError } from "./errors.js";
import {
  BASE_OPTIONS, type CompletionBackend, type Prepared, type RequestBase, type RequestOptions, type StreamOptions,
  codecOf, inRange, prepare, refuseUnknown,
} from "./request.js";
import type { FinishReason } from "./session.js";
import type { TextCodec } from "./text.js";

/** Options that both forms of the request take. */
export interface CompletionRequestBase extends RequestBase {
  /** The text to continue, or its token ids. */
  prompt: string | readonly number[];
  /** How many of the likeliest tokens to report at each place, up to 20. */
  logprobs?: number | null;
  /** Stops the answer, as the one in the second argument does. */
  signal?: AbortSignal | null;
}

/** The whole continuation at once. */
export interface CompletionRequest extends CompletionRequestBase {
  stream?: false | null;
}

/** The continuation as it comes. */
export interface CompletionStreamRequest extends CompletionRequestBase {
  stream: true;
  stream_options?: StreamOptions | null;
}

/** How likely the tokens of a piece were. */
export interface CompletionLogprobs {
  tokens: string[];
  token_logprobs: number[];
  top_logprobs: Record<string, number>[];
  /** Where each token begins in the answer's text, in UTF-16 units. */
  text_offset: number[];
}

/** A continuation, or a piece of it when streamed. */
export interface Completion {
  id: string;
  object: "text_completion";
  created: number;
  model: string;
  choices: { index: 0; text: string; finish_reason: FinishReason | null; logprobs: CompletionLogprobs | null }[];
  /** In a whole answer, and in the last piece of a streamed one with `stream_options.include_usage`. */
  usage?: Usage;
}

const SUPPORTED: ReadonlySet<string> = new Set([...BASE_OPTIONS, "prompt", "logprobs"]);

/** `engine.completions`. */
export class Completions {
  readonly #backend: CompletionBackend;

  /** An engine makes it. @internal */
  constructor(backend: CompletionBackend) {
    this.#backend = backend;
  }

  create(request: CompletionStreamRequest, options?: RequestOptions): Promise<AsyncGenerator<Completion, void, void>>;
  create(request: CompletionRequest, options?: RequestOptions): Promise<Completion & { usage: Usage }>;
  async create(
    request: CompletionRequest | CompletionStreamRequest,
    options: RequestOptions = {},
  ): Promise<(Completion & { usage: Usage }) | AsyncGenerator<Completion, void, void>> {
    refuseUnknown(request, SUPPORTED);
    const codec = codecOf(this.#backend);
    const { prompt } = request;
    if (typeof prompt !== "string" && !(Array.isArray(prompt) && prompt.every(Number.isInteger))) {
      throw new MoaError("bad-argument", "`prompt` must be a text or a list of token ids");
    }
    const ids = typeof prompt === "string" ? codec.encode(prompt, true) : (prompt as readonly number[]);
    const logprobs = request.logprobs == null ? undefined : inRange("logprobs", request.logprobs, 0, 20);
    const prepared = prepare("cmpl", request, ids, logprobs, this.#backend, options);
    return request.stream === true ? this.#stream(prepared) : this.#whole(prepared);
  }

  async *#stream(prepared: Prepared): AsyncGenerator<Completion, void, void> {
    const { id, created, model, codec, tokens } = prepared;
    let offset = 0;
    for await (const { text, logprobs, end } of answer(prepared, this.#backend)) {
      const described = tokens.logprobs === undefined ? null : describe(logprobs, codec, offset);
      offset += text.length;
      if (text === "" && logprobs.length === 0 && !end) continue;
      const choice = { index: 0 as const, text, finish_reason: end?.reason ?? null, logprobs: described };
      yield { id, created, model, object: "text_completion", choices: [choice] };
      if (end && prepared.includeUsage) yield { id, created, model, object: "text_completion", choices: [], usage: end.usage };
    }
  }

  async #whole(prepared: Prepared): Promise<Completion & { usage: Usage }> {
    const { id, created, model, codec, tokens } = prepared;
    let text = "";
    const seen: TokenLogprob[] = [];
    for await (const piece of answer(prepared, this.#backend)) {
      text += piece.text;
      seen.push(...piece.logprobs);
      if (!piece.end) continue;
      const logprobs = tokens.logprobs === undefined ? null : describe(seen, codec, 0);
      const choice = { index: 0 as const, text, finish_reason: piece.end.reason, logprobs };
      return { id, created, model, object: "text_completion", choices: [choice], usage: piece.end.usage };
    }
    throw new MoaError("internal", "the answer has no end");
  }
}

function describe(logprobs: readonly TokenLogprob[], codec: TextCodec, start: number): CompletionLogprobs {
  const text = (id: number) => codec.decode([id], false);
  let offset = start;
  const described: CompletionLogprobs = { tokens: [], token_logprobs: [], top_logprobs: [], text_offset: [] };
  for (const { id, logprob, top } of logprobs) {
    described.tokens.push(text(id));
    described.token_logprobs.push(logprob);
    // Of tokens with the same text, such as pieces of characters, the likeliest stands.
    described.top_logprobs.push(Object.fromEntries([...top].reverse().map((one) => [text(one.id), one.logprob])));
    described.text_offset.push(offset);
    offset += text(id).length;
  }
  return described;
}
