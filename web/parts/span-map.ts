/** The map of spans: one column a layer, one cell a KV head; the darker, the further back it sees. */

import type { PlanInfo } from "moa-runtime";

import { make } from "./elements.js";
import { count, percent } from "./numbers.js";

/** A KV head, by its layer. */
export interface Head {
  layer: number;
  head: number;
  /** Tokens, within the context. */
  span: number;
}

/** What becomes of the map after it is drawn. */
export interface SpanMap {
  readonly heads: readonly Head[];
  /** Fills each cell from below by what `share` says, 0 to 1. */
  fill(share: (head: Head) => number): void;
  /** Marks one head. */
  mark(chosen: Head): void;
}

export const describe = ({ layer, head, span }: Head) => `Layer ${layer + 1}, KV head ${head + 1}: ${count(span)} tokens`;

/** Draws a plan into `grid`; `pointed` hears of the head under the pointer, or under the arrow keys. */
export function drawSpans(grid: HTMLElement, plan: PlanInfo, context: number, pointed: (head: Head) => void): SpanMap {
  const cells: { head: Head; cell: HTMLElement }[] = [];
  const columns = plan.spans.map((layer, at) => {
    const column = make("div");
    for (const [head, span] of layer.entries()) {
      const known: Head = { layer: at, head, span: Math.min(span, context) };
      const cell = make("div", "cell");
      cell.style.setProperty("--share", percent(known.span / context));
      cell.addEventListener("pointerenter", () => pointed(known));
      column.append(cell);
      cells.push({ head: known, cell });
    }
    return column;
  });
  const spans = cells.map(({ head }) => head.span);
  const perLayer = plan.spans[0]?.length ?? 1;
  grid.style.setProperty("--heads", String(perLayer));
  grid.role = "img";
  grid.ariaLabel =
    `Spans of ${plan.spans.length} layers with ${perLayer} KV heads each, from ${count(Math.min(...spans))} to ${count(Math.max(...spans))} tokens`;
  grid.replaceChildren(...columns);

  let at = 0;
  // In the place of the one of a map that was drawn here before.
  grid.onkeydown = (event) => {
    const steps: Record<string, number> = { ArrowRight: perLayer, ArrowLeft: -perLayer, ArrowDown: 1, ArrowUp: -1 };
    const step = steps[event.key];
    if (step === undefined) return;
    event.preventDefault();
    at = Math.min(Math.max(at + step, 0), cells.length - 1);
    const { head } = cells[at] as { head: Head };
    pointed(head);
  };

  return {
    heads: cells.map(({ head }) => head),
    fill(share) {
      for (const { head, cell } of cells) cell.style.setProperty("--fill", percent(share(head)));
    },
    mark(chosen) {
      at = Math.max(0, cells.findIndex(({ head }) => head === chosen));
      for (const { head, cell } of cells) cell.classList.toggle("chosen", head === chosen);
    },
  };
}
