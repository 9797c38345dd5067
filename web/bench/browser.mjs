// One headless Chromium with the bench's page open, and the resident memory of its processes.
//
//   MOA_CHROMIUM         the browser; with LVP_SO it is the one that the tests' Vulkan shim was put into (cargo xtask setup)
//   MOA_CHROMIUM_FLAGS   more of its flags
//   MOA_SHIMMED_GPU      set where the shim stands before a real GPU's driver: the browser then calls it a fallback adapter, and
//                        engines would choose what is quick on a software one

import { readFileSync, readdirSync } from "node:fs";

import { chromium } from "playwright-core";

import { FLAGS } from "../chromium.mjs";

/** Said in every script, since a worker has no other place for it. */
const NO_FALLBACK = `globalThis.GPUAdapterInfo && Object.defineProperty(GPUAdapterInfo.prototype, "isFallbackAdapter", { get: () => false });\n`;

async function sayNoFallback(page) {
  // What comes through a page's service worker is out of reach.
  await page.addInitScript(() => Object.defineProperty(Navigator.prototype, "serviceWorker", { get: () => undefined }));
  await page.route(/\.m?js(\?.*)?$/, async (route) => {
    const response = await route.fetch();
    await route.fulfill({ response, body: NO_FALLBACK + (await response.text()) });
  });
}

/** Of the adapter's limits, those that decide which kernels an engine may choose and how it cuts its weights. */
const LIMITS = [
  "maxBufferSize",
  "maxStorageBufferBindingSize",
  "maxStorageBuffersPerShaderStage",
  "maxComputeInvocationsPerWorkgroup",
  "maxComputeWorkgroupSizeX",
  "maxComputeWorkgroupStorageSize",
  "maxComputeWorkgroupsPerDimension",
];

/** In the page: the adapter that engines get, who ask for the quickest. */
async function adapterFacts(limits) {
  const adapter = await navigator.gpu?.requestAdapter({ powerPreference: "high-performance" });
  if (!adapter) return undefined;
  const { info } = adapter;
  const words = ["vendor", "architecture", "device", "description", "driver", "backend", "type", "isFallbackAdapter", "subgroupMinSize", "subgroupMaxSize"];
  return {
    // What a browser keeps to itself is an empty word.
    ...Object.fromEntries(words.map((word) => [word, info[word]]).filter(([, value]) => value !== undefined && value !== "")),
    features: [...adapter.features].sort(),
    limits: Object.fromEntries(limits.map((name) => [name, adapter.limits[name]])),
  };
}

/** Browser and adapter. Device and driver have names only with a flag that no engine is measured under: this browser is closed again. */
export async function describeBrowser(url) {
  const browser = await openBrowser(url, { flags: ["--enable-webgpu-developer-features"] });
  await browser.close();
  return { version: browser.version, adapter: browser.adapter };
}

/** Opens the page, waits until `ready` holds there, and resolves with the calls that the bench needs. */
export async function openBrowser(url, { ready = () => globalThis.page, limit, flags = [] } = {}) {
  const server = await chromium.launchServer({ executablePath: process.env.MOA_CHROMIUM, args: [...FLAGS, "--enable-unsafe-webgpu", ...flags], env: process.env });
  const browser = await chromium.connect(server.wsEndpoint());
  const page = await browser.newPage();
  if (process.env.MOA_SHIMMED_GPU) await sayNoFallback(page);
  // A contender's own warnings are its business; what ends it is told by the call that fails.
  page.setDefaultTimeout(0);
  await page.goto(url);
  await page.waitForFunction(ready, undefined, limit);
  const adapter = await page.evaluate(adapterFacts, LIMITS);
  const pid = server.process().pid;
  let peak = {};
  let timer;
  return {
    page,
    version: browser.version(),
    adapter,
    memory: () => resident(pid),
    watchMemory() {
      timer = setInterval(() => {
        for (const [type, mib] of Object.entries(resident(pid))) peak[type] = Math.max(peak[type] ?? 0, mib);
      }, 100);
    },
    peakMemory: () => peak,
    async call(name, args, limitMs) {
      let alarm;
      const late = new Promise((_, reject) => (alarm = setTimeout(() => reject(new Error("did not finish within its time limit")), Math.max(limitMs, 0))));
      try {
        return await Promise.race([page.evaluate(([fn, given]) => globalThis.page[fn](...given), [name, args]), late]);
      } finally {
        clearTimeout(alarm);
      }
    },
    async close() {
      clearInterval(timer);
      await server.kill();
    },
  };
}

/** Resident MiB of the browser's renderer and GPU processes: the largest of each kind. */
function resident(pid) {
  const parents = new Map();
  for (const name of readdirSync("/proc")) {
    if (!/^\d+$/.test(name)) continue;
    try {
      const stat = readFileSync(`/proc/${name}/stat`, "latin1");
      parents.set(Number(name), Number(stat.slice(stat.lastIndexOf(")") + 2).split(" ")[1]));
    } catch {
      // It ended meanwhile.
    }
  }
  const ours = (id) => id === pid || (parents.has(id) && ours(parents.get(id)));
  const most = {};
  for (const id of parents.keys()) {
    if (!ours(id)) continue;
    try {
      const type = /--type=([a-z-]+)/.exec(readFileSync(`/proc/${id}/cmdline`, "latin1"))?.[1];
      const mib = Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${id}/status`, "latin1"))?.[1] ?? 0) / 1024;
      if (type === "renderer" || type === "gpu-process") most[type] = Math.max(most[type] ?? 0, mib);
    } catch {
      // It ended meanwhile.
    }
  }
  return most;
}
