/**
 * The chat page. It uses the package as any page would; what it adds is only what a person sees.
 *
 * Address: `?model=URL` of a manifest (by default the bundle in the folder above), `?plan=NAME`, `?context=TOKENS`.
 */

import { type ChatMessage, createEngine, type Engine, MoaError, type Manifest, probe } from "moa-runtime";

import { PAGE_CACHE } from "./kept.js";
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
    await keepPage();
    const context = address.searchParams.get("context");
    const plan = address.searchParams.get("plan");
    await offerPlans(plan);
    engine = await createEngine({
      model: manifestUrl,
      ...(plan ? { plan } : {}),
      ...(context ? { contextLength: Number(context) } : {}),
      onProgress: (progress) => page.loading(progress),
      onRecovery: ({ progress }) => page.recovering(progress),
    });
  } catch (error) {
    return page.failed(error);
  }
  page.ready(engine);
}

/** Has the page's own files kept, so that it opens without a network; the package keeps the model. */
async function keepPage(): Promise<void> {
  if (!navigator.serviceWorker) return;
  try {
    const { scope } = await navigator.serviceWorker.register("offline.js");
    await navigator.serviceWorker.ready;
    // What came before the worker was there.
    const loaded = performance.getEntriesByType("resource").map(({ name }) => name);
    await (await caches.open(PAGE_CACHE)).addAll(["./", ...new Set(loaded.filter((url) => url.startsWith(scope)))]);
  } catch {
    // Private windows refuse: the page then needs its server.
  }
}

/** Fills the list of plans before the weights come. A manifest that cannot be read is the engine's to report. */
async function offerPlans(chosen: string | null): Promise<void> {
  const manifest = await fetch(manifestUrl)
    .then((response) => response.json() as Promise<Manifest>)
    .catch(() => undefined);
  if (!manifest?.plans) return;
  const plans = manifest.plans.map(({ name, at }) => ({ name, density: at.at(-1)?.kv_density ?? 1 }));
  page.plans([...plans, { name: "dense", density: 1 }], chosen ?? manifest.default_plan, (name) => {
    address.searchParams.set("plan", name);
    location.assign(address);
  });
}

/** Asks `text` after the first `kept` messages; what came later is given up. */
function ask(text: string, kept = messages.length): void {
  if (!engine || running) return;
  messages = messages.slice(0, kept);
  messages.push({ role: "user", content: text });
  page.userTurn(text, messages.length - 1);
  void answer(engine);
}

/** Another answer to the last question. */
function retry(): void {
  if (!engine || running) return;
  if (messages.at(-1)?.role === "assistant") messages.pop();
  if (messages.at(-1)?.role === "user") void answer(engine);
}

async function answer(engine: Engine): Promise<void> {
  const controller = (running = new AbortController());
  // A new conversation may begin while this answer is still being stopped.
  const conversation = messages;
  const turn = page.assistantTurn();
  const { temperature, longest, instructions } = page.settings();
  const system: ChatMessage[] = instructions === "" ? [] : [{ role: "system", content: instructions }];
  let content = "";
  try {
    const stream = await engine.chat.completions.create(
      {
        messages: [...system, ...conversation], stream: true, stream_options: { include_usage: true },
        max_tokens: longest, temperature, top_p: 0.9, min_p: 0.05,
      },
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
    if (content !== "") conversation.push({ role: "assistant", content });
    running = undefined;
    turn.end();
  }
}

page.onSend(ask);
page.onRetry(retry);
page.onStop(() => running?.abort());
page.onClear(() => {
  running?.abort();
  messages = [];
});
void start();
