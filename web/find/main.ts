/**
 * The thirty-second demo: hides a number in a book and asks one model for it under three plans. `?context=TOKENS` is what
 * the engines are created for; text, question and answer share it.
 */

import type { Engine } from "moa-runtime";

import { book } from "../parts/book.js";
import { element, make, onStop } from "../parts/elements.js";
import { watchRequests } from "../parts/keep.js";
import { asked, failed, fork, loaded, open, prepare } from "../parts/model.js";
import { count, gib, percent } from "../parts/numbers.js";
import { offerContexts, offerPlans } from "../parts/plans.js";
import { uniformLike } from "../parts/uniform.js";
import { Column } from "./column.js";
import { type Hidden, hide } from "./hide.js";

const LENGTHS = [1024, 2048, 4096, 8192];
const DEFAULT_LENGTH = 4096;
/** Tokens for the chat template and the answer. */
const ANSWER_TOKENS = 24;
const TEMPLATE_TOKENS = 64;
/** Layers, KV heads and channels of Llama-3.2-3B. */
const THREE_B = { layers: 28, kvHeads: 8, headDim: 128, context: 32_768 };

interface Asked {
  engine: Engine;
  column: Column;
}

const run = element<HTMLButtonElement>("run");
const ten = element<HTMLButtonElement>("ten");
const stop = element<HTMLButtonElement>("stop");
let stopping: AbortController | undefined;

async function start(): Promise<void> {
  const model = await prepare();
  if (!model) return;
  offerPlans(model, asked.plan, false);
  const context = asked.context ?? Math.min(DEFAULT_LENGTH, model.maxContext);
  offerContexts(LENGTHS.filter((length) => length <= model.maxContext), context);
  element("length").textContent = `about ${count(Math.round(context / 100) * 100)}`;

  // One set of weights for all three. The dense engine comes first: it asks most of the device. No question is asked twice.
  const options = { contextLength: context, turnSnapshotBytes: 0 };
  const dense = await open({ ...options, label: "Dense", plan: "dense" });
  const moa = dense && (await fork(dense, { ...options, label: "MoA" }));
  const uniform = moa && (await fork(dense, { ...options, label: "Uniform window", plan: uniformLike(moa.plan(), context) }));
  if (!uniform) return;
  await book();
  loaded();

  const span = uniform.plan().spans[0]?.[0] ?? context;
  const three: Asked[] = [
    { engine: dense, column: new Column("Dense", "Every head keeps every key.", dense) },
    { engine: uniform, column: new Column("Uniform window", `Every head keeps ${count(span)} tokens, in as many bytes as MoA.`, uniform) },
    { engine: moa, column: new Column("MoA", `Each head keeps what it needs, ${reach(moa)} tokens.`, moa) },
  ];
  element("columns").replaceChildren(...three.map(({ column }) => column.element));
  for (const id of ["columns", "proof", "how"]) element(id).hidden = false;
  arithmetic(moa.plan().kvDensity);
  countRequests();
  run.disabled = ten.disabled = false;
  run.addEventListener("click", () => void rounds(three, 1));
  ten.addEventListener("click", () => void rounds(three, 10));
  onStop(() => stopping?.abort());
  run.focus({ preventScroll: true });
}

async function rounds(three: readonly Asked[], times: number): Promise<void> {
  const { signal } = (stopping = new AbortController());
  busy(true);
  try {
    for (let round = 0; round < times; round++) {
      const engine = three[0]?.engine as Engine;
      const hidden = await hide((text) => engine.tokenize(text), engine.contextLength - ANSWER_TOKENS - TEMPLATE_TOKENS);
      show(hidden);
      for (const { column } of three) column.begin(hidden.depth);
      // One after the other: they share one device, and none is to slow another.
      for (const one of three) await ask(one, hidden, signal);
    }
  } catch (error) {
    if (!signal.aborted) failed(error);
  } finally {
    for (const { column } of three) column.rest();
    busy(false);
  }
}

async function ask({ engine, column }: Asked, hidden: Hidden, signal: AbortSignal): Promise<void> {
  const stream = await engine.chat.completions.create(
    {
      messages: [{ role: "user", content: hidden.prompt }],
      temperature: 0, max_tokens: ANSWER_TOKENS, stream: true, stream_options: { include_usage: true },
    },
    { signal, onProgress: ({ phase, done, total }) => phase === "prefill" && column.reading(done, total) },
  );
  for await (const chunk of stream) {
    column.append(chunk.choices[0]?.delta.content ?? "");
    if (chunk.usage) column.end(hidden.number, chunk.usage);
  }
}

function busy(yes: boolean): void {
  run.hidden = ten.hidden = yes;
  stop.hidden = !yes;
  (yes ? stop : run).focus({ preventScroll: true });
}

function show({ before, fact, after, title, depth }: Hidden): void {
  element("place").hidden = false;
  element("where").textContent = `Hidden ${percent(depth, 0)} into a passage that begins in chapter ${title.replace(/\.$/, "")}`;
  element("snippet").replaceChildren(`${before} `, make("mark", "", fact), ` ${after}`);
}

/** From the shortest to the longest span. */
function reach(engine: Engine): string {
  const spans = engine.plan().spans.flat();
  return `${count(Math.min(...spans))} to ${count(Math.min(Math.max(...spans), engine.contextLength))}`;
}

function countRequests(): void {
  let requests = 0;
  const counted = watchRequests((url) => {
    // The browser itself looks now and then whether the service worker has changed.
    if (url.endsWith("/offline.js")) return;
    element("requests").textContent = String(++requests);
  });
  if (!counted) {
    element("requests").textContent = "–";
    element("requests-what").textContent = "network requests: this browser lets nobody count them here";
  }
}

function arithmetic(density: number): void {
  const { layers, kvHeads, headDim, context } = THREE_B;
  const bytes = 2 * layers * kvHeads * headDim * 2;
  const dense = bytes * context;
  element("arithmetic").textContent =
    `A 3B model has ${layers} layers with ${kvHeads} KV heads of ${headDim} channels: 2 × ${layers} × ${kvHeads} × ${headDim} × 2 bytes = ` +
    `${bytes / 1024} KiB a token. At ${count(context)} tokens that is ${gib(dense)} dense, and ${gib(dense * density)} at this plan's ${percent(density)} of the keys.`;
}

void start();
