// Medians, the table, the charts and the page, from samples as a run leaves them. No browser.

import assert from "node:assert/strict";
import test from "node:test";

import { added, linear, logarithmic } from "../charts.mjs";
import { attentionOf, words } from "../native.mjs";
import { agreement, median, page, rate, table } from "../results.mjs";

const samples = (...ms) => ms.map((each) => ({ ms: each, tokens: 10 }));

const NATIVE = {
  schema: 2,
  model: "m",
  plan: "dense",
  context: 1024,
  adapter: { name: "A <GPU>", driver: "1.2", backend: "vulkan", software: false, variant: "subgroups" },
  kernels: [0, 512].map((depth) => ({
    depth,
    tokenSecs: 0.004,
    kernels: [
      { kernel: "gate_up.q4", secs: 0.002, dispatches: 30, bytes: 100 },
      { kernel: "attention_decode.f16", secs: 0.001 + depth / 1e6, dispatches: 30, bytes: 8 },
      { kernel: "merge_lse", secs: 0.0005, dispatches: 30, bytes: 0 },
    ],
  })),
};

function run() {
  const entry = (label, first, second) => ({
    label,
    weights: "w",
    loadMs: 1500,
    answer: [1, 2, 3],
    prefill: [{ length: 32, samples: samples(100, 50, 200) }],
    decode: [{ depth: 0, samples: samples(...first) }, { depth: 512, samples: samples(...second) }],
    memory: { peak: { renderer: 10.4, "gpu-process": 20.6 } },
  });
  return {
    date: "2026-11-30T00:00:00Z",
    options: { prompts: [32], depths: [0, 512], tokens: 10, repetitions: 3, contextLength: 1024 },
    browser: "156.0",
    adapter: { vendor: "v", device: "d", features: ["shader-f16"], limits: {} },
    cpus: { count: 2, model: "c" },
    leftOut: [{ name: "transformers-webgpu", why: "no --onnx" }, { name: "transformers-cpu", why: "no --onnx" }],
    native: [attentionOf(NATIVE)],
    contenders: [
      entry("moa, dense", [10, 20, 30], [40, 50, 60]),
      entry("moa, plan moa-50", [10, 20, 30], [20, 30, 40]),
      { label: "wllama | <x>", weights: "w", prefill: [{ length: 32, samples: [] }], decode: [{ depth: 0, samples: [] }, { depth: 512, samples: [] }], failed: "no" },
    ],
  };
}

test("a median of an even number lies between the middle two", () => {
  assert.equal(median([3, 1, 2]), 2);
  assert.equal(median([4, 1, 2, 3]), 2.5);
});

test("rates are median, slowest and fastest; samples of no token count for nothing", () => {
  assert.equal(rate(samples(100, 50, 200)), "100 (50-200)");
  assert.equal(rate([...samples(100), { ms: 5, tokens: 0 }]), "100");
  assert.equal(rate([]), "");
});

test("answers are compared with the first row's up to the first difference", () => {
  const result = { contenders: [{ answer: [1, 2, 3] }] };
  assert.equal(agreement(result, { answer: [1, 2, 3] }), "3 of 3");
  assert.equal(agreement(result, { answer: [1, 9, 3] }), "1 of 3");
  assert.equal(agreement(result, {}), "");
});

test("the table has every row, those that failed too, each as wide as the header", () => {
  const lines = table(run()).split("\n");
  assert.equal(lines.length, 5);
  assert.match(lines[0], /pp32 t\/s \| tg10 @ 0 t\/s \| tg10 @ 512 t\/s/);
  assert.match(lines[2], /moa, dense \| w \| 1\.5 \| 100 \(50-200\) \| 500 \(333-1,000\) \| 200 \(167-250\) \| 10, 21 \| 3 of 3/);
  const width = (line) => line.replaceAll("\\|", "").split("|").length;
  for (const line of lines) assert.equal(width(line), width(lines[0]), line);
  assert.match(lines[4], /no \|$/);
});

test("what depth adds starts at nothing", () => {
  const [{ points }] = added([{ label: "a", color: "c", points: [[0, 2, [2]], [512, 5, [4, 5, 6]]] }]);
  assert.deepEqual(points, [[0, 0, [0]], [512, 3, [3]]]);
});

test("charts stay within their frame and name their ticks", () => {
  const series = [{ label: "a", color: "#000", points: [[0, 0.7, [0.6, 0.8]], [512, 42, [42]]] }];
  const places = (svg) => [...svg.matchAll(/c([xy])="([^"]+)"/g)].map(([, axis, at]) => [axis, Number(at)]);
  for (const svg of [logarithmic(series, [0, 512], "log"), linear(series, [0, 512], "lin")]) {
    assert.equal(places(svg).length, 6);
    for (const [axis, at] of places(svg)) assert.ok(at >= 0 && at <= (axis === "x" ? 760 : 360), `${axis} ${at}`);
    assert.doesNotMatch(svg, /NaN|Infinity|undefined/);
  }
  assert.match(logarithmic(series, [0, 512], "log"), />0\.1<.*>1<.*>10<.*>100</s);
  assert.match(linear(series, [0, 512], "lin"), />0<.*>20<.*>40<.*>60</s);
});

test("a token that a deeper cache made quicker lies below nothing, within the frame", () => {
  const svg = linear([{ label: "a", color: "#000", points: [[0, 0, [0]], [64, -5, [-5]], [128, 1, [1]]] }], [0, 64, 128], "lin");
  assert.match(svg, />-6<.*>-4<.*>-2<.*>0<.*>2</s);
  const heights = [...svg.matchAll(/cy="([^"]+)"/g)].map(([, at]) => Number(at));
  assert.ok(heights[1] > heights[0] && heights[0] > heights[2] && Math.max(...heights) <= 360 - 44, heights.join());
});

test("attention is its kernels and those that join their parts, nothing else", () => {
  const { plan, depths } = attentionOf(NATIVE);
  assert.equal(plan, "dense");
  assert.deepEqual(depths.map(({ depth, bytes, tokenMs }) => [depth, bytes, tokenMs]), [[0, 8, 4], [512, 8, 4]]);
  assert.ok(Math.abs(depths[0].ms - 1.5) < 1e-9 && Math.abs(depths[1].ms - 2.012) < 1e-9);
  for (const other of [undefined, {}, { schema: 1 }, { ...NATIVE, kernels: [] }]) assert.throws(() => attentionOf(other), /not a document/);
});

test("the native run has the page's context and depths", () => {
  const list = words("b", "moa-50", { contextLength: 1024, depths: [0, 512], kernels: "auto" });
  assert.deepEqual(list.slice(-4), ["--depth", "0", "--depth", "512"]);
  assert.equal(list[list.indexOf("--context") + 1], "1024");
  assert.equal(list[list.indexOf("--plan") + 1], "moa-50");
});

test("the page says what it shows, what is missing, and escapes what it is told", () => {
  const html = page(run());
  assert.match(html, /What depth adds to a token/);
  assert.match(html, /Attention by itself, native/);
  assert.match(html, /not in the browser: A &lt;GPU&gt; \(vulkan, 1\.2; kernels subgroups; a context of 1024\)/);
  assert.match(html, /<p>transformers-webgpu, transformers-cpu: no --onnx\.<\/p>/);
  assert.match(html, /wllama \| &lt;x&gt;/);
  assert.doesNotMatch(html, /NaN|undefined|<GPU>/);
  assert.equal(html.match(/<svg /g).length, 3);
});

test("WebLLM stands there by published figures only, with device, model, weights and source, and no judgment", () => {
  const html = page(run());
  assert.match(html, /WebLLM is compared by published figures only/);
  for (const part of ["Llama-3.1-8B", "Phi-3.5-mini", "q4f16", "Apple M3 Max", "Chrome Canary 133", "41.1", "57.7", "71.1", "89.3", "https://arxiv.org/abs/2412.15803"]) {
    assert.ok(html.includes(part), part);
  }
  assert.match(html, /say nothing about who is quicker/);
  assert.doesNotMatch(html, /faster than|slower than|beats|fastest engine/i);
});

test("without native figures there is no such chart, and a failure is told", () => {
  const none = page({ ...run(), native: [] });
  assert.doesNotMatch(none, /Attention by itself/);
  const failed = page({ ...run(), native: [{ plan: "dense", failed: "no timestamps" }] });
  assert.match(failed, /not timed for dense: no timestamps/);
});
