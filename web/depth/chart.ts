/** Two lines over depth, from zero: nothing is cut off to make a difference look larger. */

import { makeSvg } from "../parts/elements.js";
import { count, ms } from "../parts/numbers.js";

/** What was measured at one depth, in milliseconds a token; absent what is not measured yet. */
export interface Point {
  depth: number;
  dense?: number;
  plan?: number;
}

const MARGIN = { left: 46, right: 58, top: 12, bottom: 30 };

/** Draws the points into `chart`, as wide as it is on the page. */
export function draw(chart: SVGSVGElement, points: readonly Point[], deepest: number): void {
  const { width, height } = chart.getBoundingClientRect();
  const most = Math.max(1e-3, ...points.flatMap(({ dense = 0, plan = 0 }) => [dense, plan]));
  const step = niceStep(most / 4);
  const top = step * Math.ceil((1.05 * most) / step);
  const x = (depth: number) => MARGIN.left + (depth / deepest) * (width - MARGIN.left - MARGIN.right);
  const y = (value: number) => height - MARGIN.bottom - (value / top) * (height - MARGIN.top - MARGIN.bottom);
  chart.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const parts: SVGElement[] = [];
  for (let tick = 0; tick <= top + step / 2; tick += step) {
    parts.push(makeSvg("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: y(tick), y2: y(tick) }));
    parts.push(makeSvg("text", { x: MARGIN.left - 8, y: y(tick) + 4, "text-anchor": "end" }, tick === 0 ? "0 ms" : String(Number(tick.toFixed(2)))));
  }
  let written = -Infinity;
  for (const { depth } of points) {
    // Labels that would run into each other are left out.
    if (x(depth) - written < 48) continue;
    written = x(depth);
    parts.push(makeSvg("text", { x: x(depth), y: height - 8, "text-anchor": "middle" }, count(depth)));
  }
  for (const series of ["dense", "plan"] as const) {
    const here = points.flatMap((point) => (point[series] === undefined ? [] : [[x(point.depth), y(point[series]), point[series]] as const]));
    const group = makeSvg("g", { class: series });
    group.append(makeSvg("polyline", { class: "line", points: here.map(([px, py]) => `${px},${py}`).join(" ") }));
    for (const [cx, cy] of here) group.append(makeSvg("circle", { cx, cy, r: 4.5 }));
    const last = here.at(-1);
    if (last) group.append(makeSvg("text", { class: "label", x: last[0] + 10, y: last[1] + 4 }, `${ms(last[2])} ms`));
    parts.push(group);
  }
  const title = chart.querySelector("title");
  if (title) title.textContent = points.map((point) => inWords(point)).join("; ");
  chart.replaceChildren(...(title ? [title] : []), ...parts);
}

const inWords = ({ depth, dense, plan }: Point) =>
  `at ${count(depth)} tokens dense ${dense === undefined ? "not measured" : `${ms(dense)} ms`}, plan ${plan === undefined ? "not measured" : `${ms(plan)} ms`}`;

/** 1, 2 or 5 times a power of ten, at least `least`. */
function niceStep(least: number): number {
  const power = 10 ** Math.floor(Math.log10(least));
  return power * (([1, 2, 5, 10].find((times) => times * power >= least)) ?? 10);
}
