/** Plans in a page's hands: the lists of plans and contexts to choose from. */

import type { ProbedModel } from "moa-runtime";

import { element } from "./elements.js";
import { choose } from "./model.js";
import { count, percent } from "./numbers.js";

/** Fills the list of plans; another choice opens the page again, or is left to `change`. */
export function offerPlans(
  { plans, defaultPlan }: ProbedModel, chosen: string | undefined, dense = true, change = (plan: string) => choose({ plan }),
): void {
  const select = element<HTMLSelectElement>("plan");
  const known = plans.map(({ name, contexts }) => ({ name, density: contexts.at(-1)?.kvDensity ?? 1 }));
  const options = [...known, ...(dense ? [{ name: "dense", density: 1 }] : [])].map(({ name, density }) => {
    const kept = density < 1 ? `${percent(density, 0)} of keys` : "all keys";
    const here = name === (chosen ?? defaultPlan);
    return new Option(`${name}: ${kept}`, name, here, here);
  });
  select.replaceChildren(...options);
  select.addEventListener("change", () => change(select.value));
  element("plan-choice").hidden = options.length < 2;
}

/** Fills the list of contexts, the chosen one among them; another choice opens the page again. */
export function offerContexts(contexts: readonly number[], chosen: number): void {
  const offered = [...new Set([...contexts, chosen])].sort((a, b) => a - b);
  const select = element<HTMLSelectElement>("context");
  select.replaceChildren(...offered.map((tokens) => new Option(`${count(tokens)} tokens`, String(tokens), false, tokens === chosen)));
  select.addEventListener("change", () => choose({ context: select.value }));
  element("context-choice").hidden = offered.length < 2;
}
