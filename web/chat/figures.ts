/** Beside the conversation: what the plan costs, how far each head looks back, and what the person has set. */

import type { Engine } from "moa-runtime";

import { element } from "../parts/elements.js";
import { count, mib, percent } from "../parts/numbers.js";
import { describe, drawSpans } from "../parts/span-map.js";

/** What the person chose. */
export interface Settings {
  temperature: number;
  longest: number | null;
  instructions: string;
}

/** Shows an engine's figures. */
export function showFigures(engine: Engine): void {
  const { kv } = engine.memory();
  const plan = engine.plan();
  element("figures").hidden = false;
  element<HTMLDetailsElement>("heads").open = matchMedia("(min-width: 64rem)").matches;
  element("density").textContent = percent(plan.kvDensity);
  element("context").textContent = count(engine.contextLength);
  element("kv-bytes").textContent = mib(kv.total);
  element("dense-bytes").textContent = mib(kv.dense);
  element("kv-gauge").style.width = percent(kv.total / kv.dense);
  const detail = element("span-detail");
  const map = drawSpans(element("spans"), plan, engine.contextLength, (head) => {
    detail.textContent = describe(head);
    map.mark(head);
  });
  const spans = map.heads.map(({ span }) => span);
  element("span-most").textContent = `all ${count(engine.contextLength)}`;
  detail.textContent = `From ${count(Math.min(...spans))} to ${count(Math.max(...spans))} tokens`;
  showUsed(0, engine.contextLength);
}

export function showSpeed(tokensPerSecond: number): void {
  element("speed").textContent = tokensPerSecond.toFixed(tokensPerSecond < 10 ? 1 : 0);
}

export function showUsed(tokens: number, context: number): void {
  element("used").textContent = count(tokens);
  element("used-gauge").style.width = percent(tokens / context);
}

/** What stands in the settings now. */
export function settings(): Settings {
  const longest = Math.floor(element<HTMLInputElement>("longest").valueAsNumber);
  return {
    temperature: Number(element<HTMLInputElement>("temperature").value),
    longest: longest >= 1 ? longest : null,
    instructions: element<HTMLTextAreaElement>("instructions").value.trim(),
  };
}

/** The number beside the slider follows it. */
export function followSettings(): void {
  const temperature = element<HTMLInputElement>("temperature");
  temperature.addEventListener("input", () => (element("temperature-value").textContent = Number(temperature.value).toFixed(1)));
}
