/** Plans in a page's hands: the lists of plans and contexts to choose from, and plans that a page makes itself. */

import type { PlanInfo, ProbedModel } from "moa-runtime";

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

/** Places for keys, slack included, of a head that sees `span` tokens of `context`. */
export function slots(span: number, slack: number, context: number): number {
  return Math.min(span + slack, context);
}

/** A plan that gives every head the same sink and window, and takes exactly as many slots of memory as `plan` does. */
export function uniformLike({ sink, spans, slack }: PlanInfo, context: number): object {
  const heads = spans.flat();
  const total = heads.reduce((sum, span) => sum + slots(span, slack, context), 0);
  const least = Math.floor(total / heads.length);
  let over = total - least * heads.length;
  const rules = spans.map((layer) => layer.map(() => ({ span: Math.max(sink + 1, least - slack) + (over-- > 0 ? 1 : 0) })));
  return { version: 1, name: "uniform", sink, block: 1, rules };
}
