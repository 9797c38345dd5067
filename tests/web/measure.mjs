// What loading and stopping cost in Chromium: bytes, times, and the renderer's resident memory. No test: figures depend
// on the machine. The environment is that of the tests (see browser.mjs); the table goes to standard output.
//
//   node tests/web/measure.mjs
//
// Loads are measured in a browser that nobody looks into: a test driver has it keep what comes over the network, up to
// 10 MiB of every request, in the very process that is measured.

import { spawn } from "node:child_process";
import { mkdtempSync, readFileSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { FLAGS } from "../../web/chromium.mjs";
import { launch, required } from "./browser.mjs";
import { openHarness, start } from "./harness.mjs";

/** Loads of each kind. */
const LOADS = 3;
/** The page tells when it is there and when it is done, and with what. */
const PAGE = `<!doctype html><link rel="icon" href="data:,"><script type="module">
import * as moa from "/harness/moa.js";
await fetch("/began/");
const start = performance.now();
const engine = await moa.createEngine({ model: "/manifest.json", contextLength: 1024 });
const ready = performance.now() - start;
const messages = [{ role: "user", content: "Hello!" }];
for await (const chunk of await engine.chat.completions.create({ messages, stream: true, max_tokens: 2, temperature: 0 })) if (chunk.choices[0]?.delta.content) break;
const first = performance.now() - start;
const { bytes } = await performance.measureUserAgentSpecificMemory();
await fetch("/done/", { method: "POST", body: JSON.stringify({ ready, first, heap: bytes, fetched: engine.loadReport.fetchedBytes }) });
</script>`;

let tell;
const server = await start(undefined, (request, response, path) => {
  if (path === "/measure/") response.writeHead(200, { "content-type": "text/html" }).end(PAGE);
  else if (path === "/began/") response.writeHead(204).end(tell("began"));
  else if (path === "/done/") request.setEncoding("utf8").once("data", (body) => response.writeHead(204).end(tell("done", JSON.parse(body))));
  else return false;
  return true;
  // Isolated, so that the browser tells what it holds itself.
}, { "cross-origin-opener-policy": "same-origin", "cross-origin-embedder-policy": "require-corp" });

const processes = () => readdirSync("/proc").filter((name) => /^\d+$/.test(name));

/** Resident MiB of the largest process of a type that is not among `others`; the page's is a renderer. */
function resident(others, type = "renderer") {
  let most = 0;
  for (const pid of processes()) {
    if (others.has(pid)) continue;
    try {
      if (!readFileSync(`/proc/${pid}/cmdline`, "latin1").includes(`--type=${type}`)) continue;
      const kib = Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, "utf8"))[1]);
      most = Math.max(most, kib / 1024);
    } catch {
      // It ended meanwhile.
    }
  }
  return most;
}

/** One visit by a browser with the profile in `folder`. */
async function load(label, folder) {
  const others = new Set(processes());
  const asked = server.requests.length;
  const waiting = {};
  const heard = (what) => new Promise((resolve) => (waiting[what] = resolve));
  tell = (what, result) => waiting[what](result);
  const [began, done] = [heard("began"), heard("done")];
  const flags = [...FLAGS, "--headless", "--enable-unsafe-webgpu", `--user-data-dir=${folder}`];
  const browser = spawn(required("MOA_CHROMIUM"), [...flags, `${server.url}/measure/`], { stdio: "ignore" });
  const gone = new Promise((resolve) => browser.once("exit", resolve));
  await began;
  const before = resident(others);
  let peak = before;
  const timer = setInterval(() => (peak = Math.max(peak, resident(others))), 10);
  const { ready, first, heap, fetched } = await done;
  clearInterval(timer);
  browser.kill();
  await gone;
  const weights = server.requests.slice(asked).filter((path) => path.includes("weights")).length;
  return {
    load: label, "ready, s": (ready / 1000).toFixed(2), "first text, s": (first / 1000).toFixed(2), "MiB fetched": (fetched / 2 ** 20).toFixed(1),
    "requests for weights": weights, "renderer before, MiB": before.toFixed(0), "peak, MiB": peak.toFixed(0), "grew, MiB": (peak - before).toFixed(0),
    "heaps afterwards, MiB": (heap / 2 ** 20).toFixed(0),
  };
}

const rows = [];
const folders = [];
for (let round = 0; round < LOADS; round++) {
  const folder = mkdtempSync(join(tmpdir(), "moa-measure-"));
  rows.push(await load("first visit", folder), await load("second visit", folder));
  folders.push(folder);
}
console.table(rows);

/** Dense and twice the bundle's plan at 4,096 tokens, an engine each or forks of one. A software GPU's memory is its process's. */
async function threePlans(how) {
  const others = new Set(processes());
  const browser = await launch();
  const page = await openHarness(browser, server);
  const told = await page.evaluate(async ([model, how]) => {
    const options = { contextLength: 4096 };
    const start = performance.now();
    const engines = [await moa.createEngine({ model, plan: "dense", ...options })];
    const first = performance.now() - start;
    for (let more = 0; more < 2; more++) engines.push(how === "forks" ? await engines[0].fork(options) : await moa.createEngine({ model, ...options }));
    const sum = (bytes) => engines.reduce((all, engine) => all + bytes(engine.memory()), 0) / 2 ** 20;
    return { first, all: performance.now() - start, weights: sum(({ gpu }) => gpu.weights ?? 0), total: sum(({ gpu }) => gpu.total) };
  }, [`${server.url}/manifest.json`, how]);
  const gpu = resident(others, "gpu-process");
  await browser.close();
  return {
    "three plans": how, "first ready, s": (told.first / 1000).toFixed(2), "all ready, s": (told.all / 1000).toFixed(2),
    "weights, MiB": told.weights.toFixed(1), "all buffers, MiB": told.total.toFixed(1), "GPU process, MiB": gpu.toFixed(0),
  };
}
console.table([await threePlans("engines"), await threePlans("forks")]);

const browser = await launch();
const page = await openHarness(browser, server);
await page.evaluate(async (model) => (globalThis.engine = await moa.createEngine({ model, contextLength: 1024 })), `${server.url}/manifest.json`);
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
// By now all of those browsers' processes have ended.
for (const folder of folders) rmSync(folder, { recursive: true, force: true });
