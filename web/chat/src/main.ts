/**
 * The chat page. It uses the package as any page would; what it adds is only what a person sees.
 *
 * Address: `?model=URL` of a manifest (by default the bundle in the folder above), `?plan=NAME`, `?context=TOKENS`.
 */

import { type ChatMessage, createEngine, type Engine, MoaError, type Manifest, probe } from "moa-runtime";

import { Page } from "./page.js";

const page = new Page();
const address = new URL(location.href);
const manifestUrl = new URL(address.searchParams.get("model") ?? "../manifest.json", address);
let messages: ChatMessage[] = [];
let engine: Engine | undefined;
let running: AbortController | undefined;

async function start(): Promise<void> {
  const verdict = await probe();
  if (!verdict.ok) return page.problem(verdict.message, verdict.hint);
  try {
    const context = address.searchParams.get("context");
    const plan = address.searchParams.get("plan");
    await offerPlans(plan);
    engine = await createEngine({
      model: manifestUrl,
      ...(plan ? { plan } : {}),
      ...(context ? { contextLength: Number(context) } : {}),
      onProgress: (progress) => page.loading(progress),
    });
  } catch (error) {
    return page.failed(error);
  }
  page.ready(engine);
}

/** Fills the list of plans before the weights come. A manifest that cannot be read is the engine's to report. */
async function offerPlans(chosen: string | null): Promise<void> {
  const manifest = await fetch(manifestUrl)
    .then((response) => response.json() as Promise<Manifest>)
    .catch(() => undefined);
  if (!manifest?.plans) return;
  page.plans([...manifest.plans.map((plan) => plan.name), "dense"], chosen ?? manifest.default_plan, (name) => {
    address.searchParams.set("plan", name);
    location.assign(address);
  });
}

async function ask(text: string): Promise<void> {
  if (!engine || running) return;
  const controller = (running = new AbortController());
  // A new conversation may begin while this answer is still being stopped.
  const conversation = messages;
  conversation.push({ role: "user", content: text });
  page.userTurn(text);
  const turn = page.assistantTurn();
  let content = "";
  try {
    const stream = await engine.chat.completions.create(
      { messages: conversation, stream: true, stream_options: { include_usage: true }, temperature: 0.6, top_p: 0.95, min_p: 0.05 },
      { signal: controller.signal, onProgress: (progress) => turn.progress(progress) },
    );
    for await (const chunk of stream) {
      const piece = chunk.choices[0]?.delta.content ?? "";
      content += piece;
      turn.append(piece);
      if (chunk.usage) turn.finished(chunk.usage);
    }
  } catch (error) {
    const typed = error instanceof MoaError ? error : new MoaError("internal", String(error));
    if (typed.code === "aborted") turn.note("stopped");
    else {
      turn.note([typed.message, typed.hint].filter(Boolean).join("; "));
      if (typed.code === "device-lost") page.failed(typed);
    }
  } finally {
    // A question without any answer is not part of the conversation.
    if (content === "") conversation.pop();
    else conversation.push({ role: "assistant", content });
    running = undefined;
    turn.end();
  }
}

page.onSend((text) => void ask(text));
page.onStop(() => running?.abort());
page.onClear(() => {
  running?.abort();
  messages = [];
});
void start();
