/**
 * The depth bench: what a token costs when so many came before it, dense and under the plan. At every depth both engines
 * write the same number of tokens several times, in turns; the median counts.
 */

import { type Engine, MoaError } from "moa-runtime";

import { opening } from "../parts/book.js";
import { element, make, onStop } from "../parts/elements.js";
import { asked, failed, fork, loaded, open, prepare } from "../parts/model.js";
import { modelName } from "../parts/names.js";
import { count, mib, ms, percent } from "../parts/numbers.js";
import { offerContexts, offerPlans } from "../parts/plans.js";
import { type Point, draw } from "./chart.js";

/** Tokens that are written at a depth; the first comes with the prompt's logits and does not count. */
const TOKENS = 17;
const ROUNDS = 3;
const DEPTHS = [64, 256, 512, 1024, 2048, 4096, 8192, 16_384];
const DEFAULT_DEEPEST = 4096;
/** Less than this shows nothing. */
const LEAST_OFFERED = 1024;

type Series = "dense" | "plan";

const run = element<HTMLButtonElement>("run");
const stop = element("stop");
const status = element("status");
let stopping: AbortController | undefined;

async function start(): Promise<void> {
  const model = await prepare();
  if (!model) return;
  offerPlans(model, asked.plan, false);
  const longest = model.maxContext - TOKENS;
  const deepest = Math.min(asked.context ?? DEFAULT_DEEPEST, longest);
  offerContexts(DEPTHS.filter((depth) => depth >= LEAST_OFFERED && depth <= longest), deepest);
  const options = { contextLength: deepest + TOKENS, turnSnapshotBytes: 0 };
  // One set of weights for both. The dense engine comes first: it asks most of the device.
  const dense = await open({ ...options, label: "Dense", plan: "dense" });
  const plan = dense && (await fork(dense, { ...options, label: "Plan" }));
  if (!plan) return;
  loaded();
  element("plan-key").textContent = `${plan.plan().name}, ${percent(plan.plan().kvDensity)} of the keys`;
  element("setting").textContent =
    `${modelName(plan.modelName)} on ${plan.adapter.name || "this device"}. Keys and values at ${count(deepest)} tokens: ${mib(plan.memory().kv.total)} under the plan, ` +
    `${mib(dense.memory().kv.total)} dense. ${TOKENS - 1} greedy tokens a round, median of ${ROUNDS} rounds.`;
  const bench = new Bench({ dense, plan }, deepest);
  run.disabled = false;
  run.addEventListener("click", () => void measure(bench));
  onStop(() => stopping?.abort());
  addEventListener("resize", () => bench.show());
  run.focus({ preventScroll: true });
}

async function measure(bench: Bench): Promise<void> {
  const { signal } = (stopping = new AbortController());
  [run.hidden, stop.hidden] = [true, false];
  stop.focus();
  element("results").hidden = false;
  try {
    await bench.run(signal);
    status.textContent = "Done";
  } catch (error) {
    status.textContent = "Stopped";
    if (MoaError.from(error).code !== "aborted") failed(error);
  } finally {
    [run.hidden, stop.hidden] = [false, true];
    run.focus({ preventScroll: true });
  }
}

class Bench {
  readonly #engines: Readonly<Record<Series, Engine>>;
  readonly #deepest: number;
  #points: Point[] = [];

  constructor(engines: Readonly<Record<Series, Engine>>, deepest: number) {
    this.#engines = engines;
    this.#deepest = deepest;
  }

  async run(signal: AbortSignal): Promise<void> {
    const { dense } = this.#engines;
    const ids = await opening((text) => dense.tokenize(text), this.#deepest);
    const depths = [...new Set([...DEPTHS.filter((depth) => depth < this.#deepest), this.#deepest])].filter((depth) => depth <= ids.length);
    this.#points = depths.map((depth) => ({ depth }));
    this.show();
    for (const point of this.#points) {
      const times: Record<Series, number[]> = { dense: [], plan: [] };
      for (let round = 0; round < ROUNDS; round++) {
        for (const series of ["dense", "plan"] as const) {
          times[series].push(await this.#round(series, ids.slice(0, point.depth), signal));
        }
      }
      for (const series of ["dense", "plan"] as const) point[series] = median(times[series]);
      this.show();
    }
  }

  /** Milliseconds a token, after exactly these tokens. */
  async #round(series: Series, ids: readonly number[], signal: AbortSignal): Promise<number> {
    const name = series === "dense" ? "Dense" : "Plan";
    for await (const event of this.#engines[series].generate({ ids, maxTokens: TOKENS, stopIds: [], signal })) {
      if (event.kind === "prefilled") status.textContent = `${name}: reading, ${count(ids.length - event.total + event.done)} of ${count(ids.length)} tokens`;
      if (event.kind === "tokens") status.textContent = `${name}: writing at a depth of ${count(ids.length)} tokens`;
      if (event.kind === "finished") return event.stats.decodeMs / (event.stats.completionTokens - 1);
    }
    throw new MoaError("internal", "the answer has no end");
  }

  show(): void {
    if (this.#points.length === 0) return;
    draw(element("chart") as unknown as SVGSVGElement, this.#points, this.#deepest);
    const head = make("thead", "", make("tr", "", ...["Depth, tokens", "Dense, ms", "Plan, ms", "Plan saves, ms"].map((title) => make("th", "", title))));
    const cell = (value: number | undefined) => make("td", "", value === undefined ? "–" : ms(value));
    const rows = this.#points.map(({ depth, dense, plan }) => {
      const saved = dense === undefined || plan === undefined ? "–" : (dense - plan).toFixed(2).replace("-", "−");
      return make("tr", "", make("td", "", count(depth)), cell(dense), cell(plan), make("td", "", saved));
    });
    element("table").replaceChildren(head, make("tbody", "", ...rows));
  }
}

function median(values: readonly number[]): number {
  return [...values].sort((a, b) => a - b)[values.length >> 1] ?? Number.NaN;
}

void start();
