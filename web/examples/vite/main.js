import { createEngine } from "moa-runtime";

const show = (id, text) => document.getElementById(id).append(text);
const model = new URLSearchParams(location.search).get("model") ?? "bundle/";
const engine = await createEngine({ model, contextLength: 1024 });
const messages = [{ role: "user", content: "Why is the sky blue?" }];
const stream = await engine.chat.completions.create({ messages, stream: true, max_tokens: 12 });
for await (const chunk of stream) show("answer", chunk.choices[0]?.delta.content ?? "");
show("progress", "done");
