/** From the engine's ids to pieces of text: whole characters, up to a stop text, a stop id or the limit. */

import type { TokenLogprob } from "./logprobs.js";
import { MoaError } from "./errors.js";
import type { CompletionBackend, Prepared } from "./request.js";
import type { FinishReason, GenerateStats } from "./session.js";
import { StreamDecoder } from "./text.js";

/** Token counts, and the times that OpenAI does not give. */
export interface Usage {
  prompt_tokens: number;
  completion_tokens: number;
  total_tokens: number;
  prompt_tokens_details: { cached_tokens: number };
  /** The first five are WebLLM's. */
  extra: {
    e2e_latency_s: number;
    prefill_tokens_per_s: number;
    decode_tokens_per_s: number;
    time_to_first_token_s: number;
    time_per_output_token_s: number;
    prefill_ms: number;
    decode_ms: number;
    /** How often the GPU device was lost and replaced on the way. */
    recoveries: number;
  };
}

/** A piece of an answer. */
export interface Piece {
  text: string;
  /** Of the tokens that came with it. */
  logprobs: readonly TokenLogprob[];
  end: { reason: FinishReason; usage: Usage } | undefined;
}

/** The answer to a request, piece by piece; the last one has `end`. Leaving the loop stops the engine. */
export async function* answer(prepared: Prepared, backend: CompletionBackend): AsyncGenerator<Piece, void, void> {
  const { tokens, stops, codec, signal, onProgress } = prepared;
  const decoder = new StreamDecoder(codec);
  const longest = Math.max(0, ...stops.map((stop) => stop.length));
  const stopIds = new Set(tokens.stopIds);
  const start = performance.now();
  let firstToken: number | undefined;
  let completionTokens = 0;
  let cachedTokens = 0;
  /** Decoded, but perhaps the beginning of a stop text. */
  let held = "";
  for await (const event of backend.generate(tokens, signal)) {
    if (event.kind === "prefilled") {
      cachedTokens = tokens.ids.length - event.total;
      onProgress?.({ phase: "prefill", done: event.done, total: event.total });
      continue;
    }
    let logprobs: readonly TokenLogprob[] = [];
    if (event.kind === "tokens") {
      firstToken ??= performance.now();
      completionTokens += event.ids.length;
      // The id that ends the answer is no part of its text.
      logprobs = (event.logprobs ?? []).filter(({ id }) => !stopIds.has(id));
      onProgress?.({ phase: "decode", done: completionTokens, total: tokens.maxTokens });
    }
    // Nor is it where the tokenizer takes it for a word.
    held += event.kind === "tokens" ? decoder.push(event.ids.filter((id) => !stopIds.has(id))) : decoder.flush();
    const cut = firstStop(held, stops);
    if (cut >= 0) {
      // Leaving the loop stops the engine.
      const now = performance.now();
      const stats: GenerateStats = {
        promptTokens: tokens.ids.length,
        cachedTokens,
        completionTokens,
        prefillMs: (firstToken ?? now) - start,
        decodeMs: now - (firstToken ?? now),
        turnSnapshotBytes: 0,
        recoveries: 0,
      };
      yield { text: held.slice(0, cut), logprobs: [], end: { reason: "stop", usage: usageOf(stats) } };
      return;
    }
    if (event.kind === "finished") {
      yield { text: held, logprobs, end: { reason: event.reason, usage: usageOf(event.stats) } };
      return;
    }
    const safe = Math.max(0, held.length - Math.max(0, longest - 1));
    yield { text: held.slice(0, safe), logprobs, end: undefined };
    held = held.slice(safe);
  }
  throw new MoaError("internal", "the answer has no end");
}

function firstStop(text: string, stops: readonly string[]): number {
  const found = stops.map((stop) => text.indexOf(stop)).filter((at) => at >= 0);
  return found.length === 0 ? -1 : Math.min(...found);
}

function usageOf(stats: GenerateStats): Usage {
  // The first token comes with the prefill's logits; the rate is that of the others.
  const decoded = Math.max(0, stats.completionTokens - 1);
  const rate = (tokens: number, ms: number) => (ms > 0 ? (1000 * tokens) / ms : 0);
  return {
    prompt_tokens: stats.promptTokens,
    completion_tokens: stats.completionTokens,
    total_tokens: stats.promptTokens + stats.completionTokens,
    prompt_tokens_details: { cached_tokens: stats.cachedTokens },
    extra: {
      e2e_latency_s: (stats.prefillMs + stats.decodeMs) / 1000,
      prefill_tokens_per_s: rate(stats.promptTokens - stats.cachedTokens, stats.prefillMs),
      decode_tokens_per_s: rate(decoded, stats.decodeMs),
      time_to_first_token_s: stats.prefillMs / 1000,
      time_per_output_token_s: stats.decodeMs / 1000 / Math.max(decoded, 1),
      prefill_ms: stats.prefillMs,
      decode_ms: stats.decodeMs,
      recoveries: stats.recoveries,
    },
  };
}
