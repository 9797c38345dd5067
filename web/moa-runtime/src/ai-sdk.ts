/**
 * For the AI SDK: `streamText({ model: moa(engine), prompt })`. A language model of its provider specification, version
 * 4, as a plain object; the SDK itself is not needed here. What the engine cannot do throws and is named.
 */

import type { Usage } from "./answer.js";
import type { ChatMessageInput, ChatRequestBase, ResponseFormat } from "./chat.js";
import type { Engine } from "./engine.js";
import { MoaError } from "./errors.js";
import { unsupported } from "./request.js";
import type { FinishReason } from "./session.js";

/** What of the SDK's call options is used; every other one that asks for something is refused. */
export interface AiSdkCall {
  prompt: readonly { role: string; content: string | readonly { type: string }[] }[];
  maxOutputTokens?: number | undefined;
  temperature?: number | undefined;
  topP?: number | undefined;
  topK?: number | undefined;
  presencePenalty?: number | undefined;
  frequencyPenalty?: number | undefined;
  stopSequences?: string[] | undefined;
  seed?: number | undefined;
  responseFormat?: AiSdkFormat | undefined;
  tools?: readonly unknown[] | undefined;
  abortSignal?: AbortSignal | undefined;
}

/** What the SDK asks an answer to be. */
export interface AiSdkFormat {
  type: string;
  name?: string | undefined;
  schema?: object | undefined;
}

/** Token counts in the SDK's words. */
export interface AiSdkUsage {
  inputTokens: { total: number; noCache: number; cacheRead: number; cacheWrite: undefined };
  outputTokens: { total: number; text: number; reasoning: undefined };
}

/** Why an answer ended, in the provider's words. */
export interface Finish {
  unified: FinishReason;
  raw: FinishReason;
}

/** A piece of an answer in the SDK's words. */
export type AiSdkPart =
  | { type: "stream-start"; warnings: never[] }
  | { type: "response-metadata"; id: string; modelId: string; timestamp: Date }
  | { type: "text-start" | "text-end"; id: string }
  | { type: "text-delta"; id: string; delta: string }
  | { type: "finish"; finishReason: Finish; usage: AiSdkUsage }
  | { type: "error"; error: unknown };

/** A language model of the AI SDK. */
export interface AiSdkModel {
  readonly specificationVersion: "v4";
  readonly provider: "moa";
  readonly modelId: string;
  readonly supportedUrls: Record<string, RegExp[]>;
  doGenerate(call: AiSdkCall): Promise<{
    content: { type: "text"; text: string }[];
    finishReason: Finish;
    usage: AiSdkUsage;
    warnings: never[];
  }>;
  doStream(call: AiSdkCall): Promise<{ stream: ReadableStream<AiSdkPart> }>;
}

/** The engine as the AI SDK's language model. */
export function moa(engine: Pick<Engine, "chat" | "modelName">): AiSdkModel {
  const model: AiSdkModel = {
    specificationVersion: "v4",
    provider: "moa",
    modelId: engine.modelName,
    supportedUrls: {},
    async doGenerate(call) {
      const answer = await engine.chat.completions.create(request(call), { signal: call.abortSignal });
      const [choice] = answer.choices;
      if (!choice) throw new MoaError("internal", "the answer is empty");
      return { content: [{ type: "text", text: choice.message.content }], finishReason: finish(choice.finish_reason), usage: usage(answer.usage), warnings: [] };
    },
    async doStream(call) {
      const chunks = await engine.chat.completions.create(
        { ...request(call), stream: true, stream_options: { include_usage: true } },
        { signal: call.abortSignal },
      );
      let reason: FinishReason = "stop";
      async function* parts(): AsyncGenerator<AiSdkPart, void, void> {
        yield { type: "stream-start", warnings: [] };
        let begun = false;
        try {
          for await (const { id, created, choices, usage: counts } of chunks) {
            if (!begun) {
              yield { type: "response-metadata", id, modelId: engine.modelName, timestamp: new Date(created * 1000) };
              yield { type: "text-start", id: "0" };
              begun = true;
            }
            const [choice] = choices;
            if (choice?.delta.content) yield { type: "text-delta", id: "0", delta: choice.delta.content };
            if (choice?.finish_reason) reason = choice.finish_reason;
            if (!counts) continue;
            yield { type: "text-end", id: "0" };
            yield { type: "finish", finishReason: finish(reason), usage: usage(counts) };
          }
        } catch (error) {
          yield { type: "error", error };
        }
      }
      return { stream: toStream(parts()) };
    },
  };
  return model;
}

function request(call: AiSdkCall): ChatRequestBase {
  if (call.tools && call.tools.length > 0) throw unsupported("tools");
  return {
    messages: call.prompt as readonly ChatMessageInput[],
    // The SDK's default is the provider's: OpenAI's 1.
    ...(call.maxOutputTokens === undefined ? {} : { max_tokens: call.maxOutputTokens }),
    ...(call.temperature === undefined ? {} : { temperature: call.temperature }),
    ...(call.topP === undefined ? {} : { top_p: call.topP }),
    ...(call.topK === undefined ? {} : { top_k: call.topK }),
    ...(call.presencePenalty === undefined ? {} : { presence_penalty: call.presencePenalty }),
    ...(call.frequencyPenalty === undefined ? {} : { frequency_penalty: call.frequencyPenalty }),
    ...(call.stopSequences === undefined ? {} : { stop: call.stopSequences }),
    ...(call.seed === undefined ? {} : { seed: call.seed }),
    ...(call.responseFormat === undefined ? {} : { response_format: format(call.responseFormat) }),
  };
}

function format({ type, name, schema }: AiSdkFormat): ResponseFormat {
  if (type === "text") return { type };
  if (type !== "json") throw unsupported(`responseFormat: ${type}`);
  return schema === undefined ? { type: "json_object" } : { type: "json_schema", json_schema: { ...(name === undefined ? {} : { name }), schema } };
}

const finish = (reason: FinishReason): Finish => ({ unified: reason, raw: reason });

function usage({ prompt_tokens, completion_tokens, prompt_tokens_details: { cached_tokens } }: Usage): AiSdkUsage {
  return {
    inputTokens: { total: prompt_tokens, noCache: prompt_tokens - cached_tokens, cacheRead: cached_tokens, cacheWrite: undefined },
    outputTokens: { total: completion_tokens, text: completion_tokens, reasoning: undefined },
  };
}

/** `ReadableStream.from`, which Chromium has late: pulled piece by piece, and cancelled with its reader. */
function toStream<T>(parts: AsyncGenerator<T, void, void>): ReadableStream<T> {
  return new ReadableStream<T>({
    async pull(controller) {
      const { done, value } = await parts.next();
      if (done) controller.close();
      else controller.enqueue(value);
    },
    async cancel() {
      await parts.return();
    },
  });
}
