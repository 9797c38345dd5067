// A compiled model in Node.js, on the GPU, through Dawn (npm package `webgpu`):
//
//   npm install moa-runtime webgpu
//   node chat.mjs FOLDER_OF_THE_BUNDLE "Why is the sky blue?"

import { resolve } from "node:path";
import { pathToFileURL } from "node:url";

import { createEngine } from "moa-runtime";
import { create, globals } from "webgpu";

// What a browser has and Node.js has not.
Object.assign(globalThis, globals);
Object.defineProperty(globalThis, "navigator", { configurable: true, value: { gpu: create([]) } });

const [folder, question = "Why is the sky blue?", maxTokens = "64"] = process.argv.slice(2);
const engine = await createEngine({
  model: pathToFileURL(`${resolve(folder)}/`),
  contextLength: 1024,
  worker: false,
  onProgress: ({ text }) => process.stderr.write(`\r${text.padEnd(60)}`),
});
process.stderr.write(`\r${engine.modelName}, ${engine.adapter.name}\n`);
const stream = await engine.chat.completions.create({
  messages: [{ role: "user", content: question }],
  stream: true,
  temperature: 0,
  max_tokens: Number(maxTokens),
});
for await (const chunk of stream) process.stdout.write(chunk.choices[0]?.delta.content ?? "");
process.stdout.write("\n");
await engine.unload();
// Dawn keeps the process alive.
process.exit(0);
