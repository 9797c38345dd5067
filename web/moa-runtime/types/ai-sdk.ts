// Compiles only while the provider is a language model of the AI SDK.

import type { LanguageModelV4 } from "@ai-sdk/provider";
import { generateText, streamText } from "ai";

import { moa } from "../src/ai-sdk.js";
import type { Engine } from "../src/engine.js";

export async function sample(engine: Engine): Promise<string> {
  const model: LanguageModelV4 = moa(engine);
  const { text } = await generateText({ model, prompt: "Hello!", maxOutputTokens: 8 });
  const { textStream } = streamText({ model: moa(engine), prompt: text });
  let all = "";
  for await (const piece of textStream) all += piece;
  return all;
}
