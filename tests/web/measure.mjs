// What loading and stopping cost in Chromium: bytes, times, and the renderer's resident memory. No test: figures depend
// on the machine. The environment is that of the tests (see browser.mjs); the table goes to standard output.
//
//   node tests/web/measure.mjs

import { readdirSync, readFileSync } from "node:fs";

import { launch, openPage } from "./browser.mjs";
import { start } from "./harness.mjs";

const server = await start();
const browser = await launch();
const page = await openPage(browser, `${server.url}/harness/`);
await page.waitForFunction(() => globalThis.moa);

/** Resident MiB of the page's process: the largest renderer. */
function resident() {
  let most = 0;
  for (const pid of readdirSync("/proc").filter((name) => /^\d+$/.test(name))) {
    try {
      if (!readFileSync(`/proc/${pid}/cmdline`, "latin1").includes("--type=renderer")) continue;
      const kib = Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, "utf8"))[1]);
      most = Math.max(most, kib / 1024);
    } catch {
      // It ended meanwhile.
    }
  }
  return most;
}

async function load(label) {
  const before = resident();
  let peak = before;
  const timer = setInterval(() => (peak = Math.max(peak, resident())), 20);
  const asked = server.requests.length;
  const result = await page.evaluate(async (model) => {
    const start = performance.now();
    globalThis.engine = await moa.createEngine({ model, contextLength: 1024 });
    const ready = performance.now() - start;
    const stream = await engine.chat.completions.create({ messages: [{ role: "user", content: "Hello!" }], stream: true, max_tokens: 2, temperature: 0 });
    for await (const chunk of stream) if (chunk.choices[0]?.delta.content) break;
    return { ready, first: performance.now() - start, report: engine.loadReport };
  }, `${server.url}/manifest.json`);
  clearInterval(timer);
  const weights = server.requests.slice(asked).filter((path) => path.includes("weights")).length;
  return {
    load: label, "ready, s": (result.ready / 1000).toFixed(2), "first text, s": (result.first / 1000).toFixed(2), "MiB fetched": (result.report.fetchedBytes / 2 ** 20).toFixed(1),
    "requests for weights": weights, "renderer before, MiB": before.toFixed(0), "peak, MiB": peak.toFixed(0), "grew, MiB": (peak - before).toFixed(0),
  };
}

const rows = [await load("first visit")];
await page.evaluate(() => engine.unload());
await page.reload();
await page.waitForFunction(() => globalThis.moa);
rows.push(await load("second visit"));
console.table(rows);

const aborts = await page.evaluate(async () => {
  const words = "the whale and the sea ".repeat(60);
  const latency = { prefilled: [], tokens: [] };
  for (let round = 0; round < 5; round++) {
    for (const kind of ["prefilled", "tokens"]) {
      const controller = new AbortController();
      const ids = engine.tokenize(`${round}${kind} ${kind === "tokens" ? "hello" : words}`);
      let at;
      try {
        for await (const event of engine.generate({ ids, maxTokens: 200, stopIds: [], signal: controller.signal })) {
          if (event.kind !== kind || at !== undefined) continue;
          at = performance.now();
          controller.abort();
        }
      } catch {
        const told = performance.now() - at;
        // The next request waits for the step that was under way.
        await engine.generate({ ids: [], maxTokens: 1 })[Symbol.asyncIterator]().next().catch(() => undefined);
        latency[kind].push({ told, free: performance.now() - at });
      }
    }
  }
  return latency;
});
const median = (values) => values.sort((a, b) => a - b)[values.length >> 1].toFixed(0);
console.table(Object.entries(aborts).map(([during, runs]) => ({
  "abort during": during === "tokens" ? "decode" : "prefill", runs: runs.length,
  "told after, ms": median(runs.map(({ told }) => told)), "engine free after, ms": median(runs.map(({ free }) => free)),
})));
await browser.close();
server.close();
