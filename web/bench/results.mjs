// From samples to a table and to a page with the chart: milliseconds a token against depth. It judges nothing and hides no row.

import { mkdirSync, renameSync, writeFileSync } from "node:fs";
import { join } from "node:path";

/** Writes a file of results, whole or not at all. */
export function write(folder, name, text) {
  mkdirSync(folder, { recursive: true });
  const path = join(folder, name);
  writeFileSync(`${path}.part`, text);
  renameSync(`${path}.part`, path);
}

const median = (values) => {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
};
const perToken = (samples) => samples.filter(({ tokens }) => tokens > 0).map(({ ms, tokens }) => ms / tokens);

/** Median, least and most of tokens a second. */
function rate(samples) {
  const times = perToken(samples);
  if (times.length === 0) return "";
  const [middle, least, most] = [median(times), Math.max(...times), Math.min(...times)].map((ms) => Number((1000 / ms).toPrecision(3)).toLocaleString("en"));
  return times.length > 1 ? `${middle} (${least}-${most})` : middle;
}

/** How many of the answer's first tokens are those of the first row. Equal weights may part at a near-tie. */
function agreement(result, entry) {
  const ours = result.contenders[0].answer;
  if (!entry.answer || !ours) return "";
  const first = ours.findIndex((id, at) => id !== entry.answer[at]);
  return `${first < 0 ? ours.length : first} of ${ours.length}`;
}

function rows(result) {
  const { options } = result;
  const header = [
    "engine", "weights", "load s", `pp${options.promptTokens} t/s`, ...options.depths.map((depth) => `tg${options.tokens} @ ${depth} t/s`),
    "renderer, GPU process MiB", "same first tokens", "",
  ];
  const lines = result.contenders.map((entry) => [
    entry.label,
    entry.weights,
    entry.loadMs === undefined ? "" : (entry.loadMs / 1000).toFixed(1),
    rate(entry.prefill),
    ...entry.decode.map(({ samples }) => rate(samples)),
    ["renderer", "gpu-process"].map((type) => entry.memory?.peak?.[type]?.toFixed(0) ?? "-").join(", "),
    agreement(result, entry),
    entry.failed ?? "",
  ]);
  return { header, lines };
}

/** A Markdown table. */
export function table(result) {
  const { header, lines } = rows(result);
  const line = (cells) => `| ${cells.map((cell) => String(cell).replaceAll("|", "\\|")).join(" | ")} |`;
  return [line(header), line(header.map(() => "---")), ...lines.map(line)].join("\n");
}

const escape = (text) => String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;").replaceAll('"', "&quot;");
const COLORS = ["#0b6e4f", "#3aa17e", "#b3541e", "#d98f4e", "#4a5899", "#8a93c7", "#7a4069", "#b98aa9"];

/** Lines of milliseconds against depth, in a scale from `low` to `high`: `at` gives a value's part of it, `ticks` the values that are named. */
function chart(series, depths, { at, ticks, label }) {
  const [width, height, left, bottom, top, right] = [760, 360, 64, 44, 16, 210];
  const deepest = Math.max(1, ...depths);
  const x = (depth) => left + (depth / deepest) * (width - left - right);
  const y = (ms) => top + (1 - at(ms)) * (height - top - bottom);
  const parts = [];
  for (const tick of ticks) {
    parts.push(`<line class="grid" x1="${left}" x2="${width - right}" y1="${y(tick)}" y2="${y(tick)}"/>`);
    parts.push(`<text x="${left - 8}" y="${y(tick) + 4}" text-anchor="end">${tick}</text>`);
  }
  for (const depth of depths) parts.push(`<text x="${x(depth)}" y="${height - bottom + 18}" text-anchor="middle">${depth}</text>`);
  parts.push(`<text x="${(left + width - right) / 2}" y="${height - 6}" text-anchor="middle">tokens in the cache</text>`);
  parts.push(`<text transform="translate(14 ${height / 2}) rotate(-90)" text-anchor="middle">ms per token</text>`);
  // Labels at the right end keep apart from each other.
  const ends = series.map(({ points }, index) => ({ index, y: y(points.at(-1)[1]) + 4 })).sort((a, b) => a.y - b.y);
  for (let next = 1; next < ends.length; next++) ends[next].y = Math.max(ends[next].y, ends[next - 1].y + 15);
  for (const { index, y: end } of ends) {
    const { label: name, color, points } = series[index];
    parts.push(`<polyline fill="none" stroke="${color}" stroke-width="2" points="${points.map(([depth, ms]) => `${x(depth)},${y(ms)}`).join(" ")}"/>`);
    for (const [depth, , all] of points) for (const ms of all) parts.push(`<circle cx="${x(depth)}" cy="${y(ms)}" r="2.5" fill="${color}"/>`);
    parts.push(`<text x="${x(points.at(-1)[0]) + 10}" y="${end}" fill="${color}">${escape(name)}</text>`);
  }
  return `<svg viewBox="0 0 ${width} ${height}" role="img" aria-label="${label}">${parts.join("")}</svg>`;
}

/** Every engine's milliseconds a token. They differ by orders of magnitude: a logarithmic scale, from a power of ten to a power of ten. */
function wholeTokens(series, depths) {
  const times = series.flatMap(({ points }) => points.flatMap(([, , all]) => all));
  const [low, high] = [Math.floor(Math.log10(Math.min(...times))), Math.ceil(Math.log10(Math.max(...times)))];
  const ticks = Array.from({ length: high - low + 1 }, (_, step) => Number((10 ** (low + step)).toPrecision(1)));
  return chart(series, depths, { at: (ms) => (Math.log10(ms) - low) / Math.max(high - low, 1), ticks, label: "Milliseconds per token against tokens in the cache" });
}

/** What a depth adds to our own engine's tokens: nothing but attention reads what lies in the cache. */
function attentionAlone(series, depths) {
  const added = series.map(({ points, ...rest }) => ({ ...rest, points: points.map(([depth, ms]) => [depth, ms - points[0][1], [ms - points[0][1]]]) }));
  const most = Math.max(...added.flatMap(({ points }) => points.map(([, ms]) => ms)), 1e-3);
  // 1, 2 or 5 times a power of ten.
  const power = 10 ** Math.floor(Math.log10(most / 4));
  const step = power * [1, 2, 5, 10].find((times) => times * power >= most / 4);
  const high = step * Math.ceil(most / step);
  const ticks = Array.from({ length: Math.round(high / step) + 1 }, (_, tick) => Number((tick * step).toPrecision(3)));
  return chart(added, depths, { at: (ms) => Math.max(ms, 0) / high, ticks, label: "Milliseconds per token that tokens in the cache add" });
}

function charts(result) {
  const series = result.contenders
    .map((entry, at) => ({
      label: entry.label,
      color: COLORS[at % COLORS.length],
      points: entry.decode.map(({ depth, samples }) => [depth, perToken(samples)]).filter(([, times]) => times.length).map(([depth, times]) => [depth, median(times), times]),
    }))
    .filter(({ points }) => points.length);
  if (series.length === 0) return "";
  const { depths } = result.options;
  const ours = series.filter(({ label, points }) => label.startsWith("moa") && points.length === depths.length);
  const second = ours.length && depths.length > 1 ? `<h2>What depth adds: attention alone</h2>${attentionAlone(ours, depths)}` : "";
  return `<h2>A whole token</h2>${wholeTokens(series, depths)}${second}`;
}

/** A page that needs nothing else. */
export function page(result) {
  const { header, lines } = rows(result);
  const cells = (tag, values) => values.map((value) => `<${tag}>${escape(value)}</${tag}>`).join("");
  const adapter = result.adapter ? Object.values(result.adapter).filter(Boolean).join(", ") : "no WebGPU adapter";
  return `<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Browser engines side by side</title>
<style>
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif; }
body { max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
svg { max-width: 60rem; width: 100%; font-size: 12px; } svg text:not([fill]) { fill: currentColor; } .grid { stroke: currentColor; opacity: .15; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; } th, td { text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid #8884; vertical-align: top; }
.wide { overflow-x: auto; }
</style>
<h1>Browser engines side by side</h1>
<p>${escape(`Chromium ${result.browser}, adapter ${adapter}, ${result.date.slice(0, 10)}. Medians of ${result.options.repetitions}, in brackets the slowest and the fastest.`)}</p>
${charts(result)}
<div class="wide"><table><thead><tr>${cells("th", header)}</tr></thead><tbody>${lines.map((line) => `<tr>${cells("td", line)}</tr>`).join("")}</tbody></table></div>
<p>Each engine ran in a browser of its own, one after another, on prompts from the same book. Times are the page's clock from the call to the token's arrival.
WebLLM is not among the rows: its compiled model libraries are in no package registry. A software adapter says nothing about a GPU.</p>
</html>
`;
}
