// From samples to a table and to a page with the charts. It judges nothing and hides no row.

import { mkdirSync, renameSync, writeFileSync } from "node:fs";
import { join } from "node:path";

import { COLORS, added, escape, linear, logarithmic } from "./charts.mjs";
import { webllm } from "./published.mjs";

/** Writes a file of results, whole or not at all. */
export function write(folder, name, text) {
  mkdirSync(folder, { recursive: true });
  const path = join(folder, name);
  writeFileSync(`${path}.part`, text);
  renameSync(`${path}.part`, path);
}

export const median = (values) => {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
};
const perToken = (samples) => samples.filter(({ tokens }) => tokens > 0).map(({ ms, tokens }) => ms / tokens);

/** Median, least and most of tokens a second. */
export function rate(samples) {
  const times = perToken(samples);
  if (times.length === 0) return "";
  const [middle, least, most] = [median(times), Math.max(...times), Math.min(...times)].map((ms) => Number((1000 / ms).toPrecision(3)).toLocaleString("en"));
  return times.length > 1 ? `${middle} (${least}-${most})` : middle;
}

/** How many of the answer's first tokens are those of the first row. Equal weights may part at a near-tie. */
export function agreement(result, entry) {
  const ours = result.contenders[0].answer;
  if (!entry.answer || !ours) return "";
  const first = ours.findIndex((id, at) => id !== entry.answer[at]);
  return `${first < 0 ? ours.length : first} of ${ours.length}`;
}

function rows(result) {
  const { options } = result;
  const header = [
    "engine", "weights", "load s", ...options.prompts.map((length) => `pp${length} t/s`), ...options.depths.map((depth) => `tg${options.tokens} @ ${depth} t/s`),
    "renderer, GPU process MiB", "same first tokens", "",
  ];
  const lines = result.contenders.map((entry) => [
    entry.label,
    entry.weights,
    entry.loadMs === undefined ? "" : (entry.loadMs / 1000).toFixed(1),
    ...entry.prefill.map(({ samples }) => rate(samples)),
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

const htmlTable = (header, lines) => {
  const cells = (tag, values) => values.map((value) => `<${tag}>${escape(value)}</${tag}>`).join("");
  return `<div class="wide"><table><thead><tr>${cells("th", header)}</tr></thead><tbody>${lines.map((line) => `<tr>${cells("td", line)}</tr>`).join("")}</tbody></table></div>`;
};
const paragraph = (text) => `<p>${escape(text)}</p>`;

/** The charts of the page's own clock. */
function clockCharts(result) {
  const series = result.contenders
    .map((entry, at) => ({
      label: entry.label,
      color: COLORS[at % COLORS.length],
      points: entry.decode.map(({ depth, samples }) => [depth, perToken(samples)]).filter(([, times]) => times.length).map(([depth, times]) => [depth, median(times), times]),
    }))
    .filter(({ points }) => points.length);
  if (series.length === 0) return "";
  const { depths } = result.options;
  const whole = `<h2>A whole token</h2>${logarithmic(series, depths, "Milliseconds per token against tokens in the cache")}`;
  const ours = series.filter(({ label, points }) => label.startsWith("moa") && points.length === depths.length);
  if (ours.length === 0 || depths.length < 2) return whole;
  return `${whole}<h2>What depth adds to a token</h2>
${paragraph(`Medians of whole tokens, less those at a depth of ${depths[0]}. Mostly attention, but not attention alone: whatever else a deeper cache slows down is in it, and noise.`)}
${linear(added(ours), depths, "Milliseconds per token that tokens in the cache add")}`;
}

/** Attention's kernels as the device's own timestamps have them. */
function nativeChart(result) {
  const entries = result.native ?? [];
  const failed = entries.filter((entry) => entry.failed).map(({ plan, failed: why }) => paragraph(`Attention by itself was not timed for ${plan}: ${why}`));
  const timed = entries.filter(({ depths }) => depths?.length);
  if (timed.length === 0) return failed.join("");
  const series = timed.map(({ plan, depths }, at) => ({ label: plan, color: COLORS[at % COLORS.length], points: depths.map(({ depth, ms }) => [depth, ms, [ms]]) }));
  const depths = [...new Set(timed.flatMap((entry) => entry.depths.map(({ depth }) => depth)))].sort((a, b) => a - b);
  const adapters = [...new Set(timed.map(({ adapter, context }) => `${adapter.name} (${adapter.backend}, ${adapter.driver}; kernels ${adapter.variant}; a context of ${context})`))];
  return `<h2>Attention by itself, native</h2>
${paragraph(`Our own engine on native wgpu, not in the browser: ${adapters.join("; ")}. The kernels that read keys and values and the one that joins their parts, summed over all layers, between timestamps of the device.`)}
${linear(series, depths, "Milliseconds of attention per token against tokens in the cache, native wgpu")}${failed.join("")}`;
}

/** What is not among the rows, and why. */
function missing(result) {
  const { why, caveat, header, lines, source } = webllm();
  const reasons = [...new Set((result.leftOut ?? []).map((each) => each.why))];
  const left = reasons.map((reason) => paragraph(`${result.leftOut.filter((each) => each.why === reason).map(({ name }) => name).join(", ")}: ${reason}.`));
  return `<h2>Not among the rows</h2>${left.join("")}
${paragraph(`${why} ${caveat}`)}
${htmlTable(header, lines)}
<p>Source: <a href="${escape(source.url)}">${escape(source.title)}</a>, ${escape(source.version)}.</p>`;
}

/** The adapter's name and, where the browser keeps it to itself, what it does tell. */
function adapterName({ adapter }) {
  if (!adapter) return "no WebGPU adapter";
  return [adapter.vendor, adapter.architecture, adapter.device, adapter.description].filter(Boolean).join(", ");
}

/** A page that needs nothing else. */
export function page(result) {
  const { header, lines } = rows(result);
  const { cpus, options } = result;
  const facts = [
    `Chromium ${result.browser}`,
    `adapter ${adapterName(result)}`,
    ...(cpus ? [`${cpus.count} CPUs (${cpus.model})`] : []),
    `context ${options.contextLength}`,
    result.date.slice(0, 10),
  ];
  return `<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Browser engines side by side</title>
<style>
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif; }
body { max-width: 76rem; margin: 2rem auto; padding: 0 1rem; } p { max-width: 60rem; }
svg { max-width: 60rem; width: 100%; font-size: 12px; } svg text:not([fill]) { fill: currentColor; } .grid { stroke: currentColor; opacity: .15; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; } th, td { text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid #8884; vertical-align: top; }
.wide { overflow-x: auto; }
</style>
<h1>Browser engines side by side</h1>
${paragraph(`${facts.join(", ")}. Medians of ${options.repetitions}, in brackets the slowest and the fastest.`)}
${htmlTable(header, lines)}
${paragraph("Each engine ran in a browser of its own, one after another, on prompts from the same book. Times are the page's clock from the call to the token's arrival. A software adapter says nothing about a GPU.")}
${clockCharts(result)}
${nativeChart(result)}
${missing(result)}
</html>
`;
}
