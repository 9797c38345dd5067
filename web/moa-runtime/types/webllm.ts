// Compiles only while a page that was written against WebLLM's types works with this package's factory.

import type {
  ChatCompletion, ChatCompletionChunk, ChatCompletionRequestNonStreaming, ChatCompletionRequestStreaming, InitProgressReport, MLCEngineInterface,
} from "@mlc-ai/web-llm";

import { CreateMLCEngine } from "../src/webllm.js";

/** The calls whose types are WebLLM's own. */
type Shared = "setInitProgressCallback" | "interruptGenerate" | "resetChat" | "getMessage" | "runtimeStatsText" | "unload";

/** What WebLLM's samples do, in its own types. */
export async function sample(model: string): Promise<string> {
  const initProgressCallback = (report: InitProgressReport) => console.log(report.text, report.progress, report.timeElapsed);
  const engine = await CreateMLCEngine(model, { initProgressCallback }, { context_window_size: 4096 });
  const shared: Pick<MLCEngineInterface, Shared> = engine;
  await shared.resetChat();

  const streaming: ChatCompletionRequestStreaming = {
    messages: [{ role: "system", content: "Be brief." }, { role: "user", content: "Hello!" }],
    stream: true, stream_options: { include_usage: true }, temperature: 0.5, seed: 1,
  };
  const chunks: AsyncIterable<ChatCompletionChunk> = await engine.chat.completions.create(streaming);
  let text = "";
  for await (const chunk of chunks) {
    text += chunk.choices[0]?.delta.content ?? "";
    if (chunk.usage) console.log(chunk.usage.extra.decode_tokens_per_s);
  }

  const whole: ChatCompletionRequestNonStreaming = { messages: [{ role: "user", content: "Hello!" }], max_tokens: 8, stop: ["\n"] };
  const answer: ChatCompletion = await engine.chat.completions.create(whole);
  const raw = await engine.completions.create({ prompt: "Once", max_tokens: 4 });
  await engine.unload();
  return text + answer.choices[0]?.message.content + raw.choices[0]?.text;
}
