/** The plan that every other is compared with: one window for all heads, in the same memory. */

import type { PlanInfo } from "moa-runtime";

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
