/** The plan viewer: spans, what a head sees of a real text, how rings fill while it is read, what a density costs. */

import { type Engine, MoaError, type ProbedModel } from "moa-runtime";

import { opening } from "../parts/book.js";
import { element, make, onStop } from "../parts/elements.js";
import { asked, failed, loaded, open, prepare } from "../parts/model.js";
import { count, mib, percent } from "../parts/numbers.js";
import { offerContexts, offerPlans } from "../parts/plans.js";
import { type Head, type SpanMap, describe, drawSpans } from "../parts/span-map.js";
import { Rings } from "./rings.js";

const DEFAULT_CONTEXT = 2048;

async function start(): Promise<void> {
  const model = await prepare();
  if (!model) return;
  offerPlans(model, asked.plan);
  const context = asked.context ?? Math.min(DEFAULT_CONTEXT, model.maxContext);
  offerContexts(model.plans.flatMap(({ contexts }) => contexts.map((at) => at.context)), context);
  showCosts(model, asked.plan ?? model.defaultPlan, context);
  const engine = await open({ contextLength: context, turnSnapshotBytes: 0 });
  if (!engine) return;
  loaded();
  element("viewer").hidden = false;
  // As much of the book as the context has room for.
  const ids = await opening((text) => engine.tokenize(text), context - 1);
  new Viewer(engine, ids).open();
}

class Viewer {
  readonly #engine: Engine;
  readonly #ids: readonly number[];
  readonly #map: SpanMap;
  readonly #rings: Rings;
  #position: number;
  #head: Head;
  #stop: AbortController | undefined;

  constructor(engine: Engine, ids: readonly number[]) {
    this.#engine = engine;
    this.#ids = ids;
    this.#position = ids.length;
    const plan = engine.plan();
    this.#map = drawSpans(element("spans"), plan, engine.contextLength, (head) => this.#point(head));
    this.#rings = new Rings(engine, this.#map.heads);
    // The head in the middle says more than the first.
    const bySpan = [...this.#map.heads].sort((a, b) => a.span - b.span);
    this.#head = bySpan[bySpan.length >> 1] as Head;
  }

  open(): void {
    const { kv } = this.#engine.memory();
    element("span-most").textContent = `all ${count(this.#engine.contextLength)}`;
    element("of").textContent = count(this.#ids.length);
    element("rings").textContent = count(this.#map.heads.length);
    element("allocated").textContent = mib(kv.total);
    element("dense-all").textContent = mib(kv.dense);
    const read = element<HTMLButtonElement>("read");
    read.disabled = false;
    read.addEventListener("click", () => void this.#read());
    onStop(() => this.#stop?.abort());
    this.#point(this.#head);
    this.#at(this.#position);
  }

  /** Reads the text from its beginning, and shows every chunk as it lands in the rings. */
  async #read(): Promise<void> {
    const { signal } = (this.#stop = new AbortController());
    const [read, stop] = [element("read"), element("stop")];
    [read.hidden, stop.hidden] = [true, false];
    stop.focus();
    this.#at(0);
    try {
      for await (const event of this.#engine.generate({ ids: this.#ids, maxTokens: 1, signal })) {
        if (event.kind === "prefilled") this.#at(event.done + this.#ids.length - event.total);
      }
      // The next reading begins at the beginning.
      await this.#engine.logits(this.#ids.slice(1, 2), { signal });
    } catch (error) {
      if (MoaError.from(error).code !== "aborted") failed(error);
    } finally {
      [read.hidden, stop.hidden] = [false, true];
      read.focus();
    }
  }

  #at(position: number): void {
    this.#position = position;
    const held = this.#rings.heldBytes(position);
    const dense = this.#rings.denseBytes(position);
    element("position").textContent = count(position);
    element("held").textContent = mib(held);
    element("dense").textContent = mib(dense);
    element("held-gauge").style.width = percent(held / this.#rings.denseBytes(this.#engine.contextLength));
    element("full").textContent = count(this.#rings.full(position));
    this.#map.fill((head) => this.#rings.fill(head, position));
    this.#look();
  }

  #point(head: Head): void {
    this.#head = head;
    this.#map.mark(head);
    this.#look();
  }

  /** The text as the head sees it from where the reading stands. */
  #look(): void {
    const position = this.#position;
    const { sink } = this.#rings;
    const start = this.#rings.windowStart(this.#head, position);
    const first = Math.min(sink, position);
    const gone = Math.max(first, start);
    element("head").textContent =
      `${describe(this.#head)}: the first ${count(sink)} and the newest ${count(Math.max(this.#head.span - sink, 1))}`;
    const text = (from: number, to: number) => this.#engine.detokenize(this.#ids.slice(from, to));
    element("text").replaceChildren(
      make("span", "sink", text(0, first)),
      make("span", "gone", text(first, gone)),
      make("span", "window", text(gone, position)),
    );
    const scale = 100 / this.#engine.contextLength;
    const bar = (id: string, from: number, to: number) => {
      element(id).setAttribute("x", String(from * scale));
      element(id).setAttribute("width", String(Math.max(0, to - from) * scale));
    };
    bar("sink-bar", 0, first);
    bar("window-bar", gone, position);
    document.querySelector("#window .past")?.setAttribute("width", String(position * scale));
  }
}

/** A row for every plan at every context that the manifest gives figures for. */
function showCosts({ plans }: ProbedModel, plan: string, context: number): void {
  const titles = ["Plan", "Context", "Keys kept", "Pairs computed", "KV memory", "Dense"];
  const head = make("thead", "", make("tr", "", ...titles.map((title) => make("th", "", title))));
  const rows = plans.flatMap(({ name, contexts }) => contexts.map((at) => {
    const bar = make("span", "bar", make("span"));
    bar.ariaHidden = "true";
    (bar.firstElementChild as HTMLElement).style.width = percent(at.kvBytes / at.denseBytes);
    const here = name === plan && at.context === context ? "here" : "";
    return make(
      "tr", here,
      make("td", "", name), make("td", "", count(at.context)), make("td", "", percent(at.kvDensity)),
      make("td", "", percent(at.attentionDensity)), make("td", "", mib(at.kvBytes), bar), make("td", "", mib(at.denseBytes)),
    );
  }));
  element("costs").replaceChildren(head, make("tbody", "", ...rows));
}

void start();
