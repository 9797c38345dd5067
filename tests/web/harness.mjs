// A server with everything that the tests in this folder load, and a page on which they call the package:
//
//   /          a bundle, by default that in MOA_BUNDLE, with the pages in its folder web/
//   /harness/  an empty page with the package as `globalThis.moa`
//   /flipped/  the same bundle with one bit of its weights turned over

import { createReadStream, readFileSync } from "node:fs";
import { copyFile, mkdir } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

import { build } from "esbuild";

import { serve } from "../../web/serve.mjs";
import { openPage, required } from "./browser.mjs";

const root = fileURLToPath(new URL("../../", import.meta.url));
const built = join(root, "target/e2e/harness");

/** The recorded continuations, and the plan that they were recorded under as the compiler would write it. */
export function recorded() {
  const { plan, cases } = JSON.parse(readFileSync(join(root, "tests/fixtures/smollm2/greedy.json"), "utf8"));
  const rules = plan.spans.map((heads) => heads.map((span) => ({ span })));
  return { cases, plan: { version: 1, name: "recorded", sink: plan.sink, block: 64, rules } };
}

/**
 * Starts the server; `requests` lists every path that was asked for, `more` may answer before the files do, and `headers`
 * come with every answer.
 */
export async function start(bundle = required("MOA_BUNDLE"), more = () => false, headers = {}) {
  await bundlePackage();
  const requests = [];
  const server = await serve(bundle, {
    intercept(request, response, path) {
      requests.push(path);
      if (path === "/harness/") {
        const script = `import * as moa from "./moa.js"; globalThis.moa = moa;`;
        response.writeHead(200, { "content-type": "text/html" });
        response.end(`<!doctype html><title>harness</title><link rel="icon" href="data:,"><script type="module">${script}</script>`);
        return true;
      }
      if (path.startsWith("/harness/")) {
        const type = path.endsWith(".wasm") ? "application/wasm" : "text/javascript";
        response.writeHead(200, { "content-type": type });
        createReadStream(join(built, path.slice("/harness/".length))).pipe(response);
        return true;
      }
      if (path.startsWith("/flipped/")) {
        const name = path.slice("/flipped/".length);
        const bytes = readFileSync(join(bundle, name));
        // Far into the file, so that whole chunks before it are right.
        if (name === "weights-000.bin") bytes[Math.floor(bytes.length * 0.7)] ^= 0x10;
        response.writeHead(200, { "content-length": bytes.length }).end(bytes);
        return true;
      }
      return more(request, response, path);
    },
    headers,
  });
  const url = `http://localhost:${server.address().port}`;
  return { url, requests, manifest: JSON.parse(readFileSync(join(bundle, "manifest.json"), "utf8")), close: () => server.close() };
}

/** Bytes of a bundle's weights. */
export const weightBytes = ({ shards }) => shards.reduce((sum, shard) => sum + shard.bytes, 0);

/** A page of `server` with the package and a way to tokens, in a browser or a context of it. */
export async function openHarness(browser, server) {
  const page = await openPage(browser, `${server.url}/harness/`);
  await page.waitForFunction(() => globalThis.moa);
  await page.evaluate(() => {
    globalThis.tokens = async (engine, ids, maxTokens, { onEvent, ...options } = {}) => {
      const made = [];
      for await (const event of engine.generate({ ids, maxTokens, stopIds: [], ...options })) {
        if (event.kind === "tokens") made.push(...event.ids);
        if (event.kind === "finished") globalThis.stats = event.stats;
        await onEvent?.(event, made);
      }
      return made;
    };
  });
  return page;
}

/** The package with its dependencies as one script, its worker and its wasm file beside it. */
async function bundlePackage() {
  const installed = (name) => fileURLToPath(import.meta.resolve(name));
  await mkdir(built, { recursive: true });
  await build({
    entryPoints: { moa: installed("moa-runtime"), worker: installed("moa-runtime/worker"), handler: installed("moa-runtime/handler") },
    outdir: built,
    bundle: true,
    splitting: true,
    format: "esm",
    target: "es2022",
    logLevel: "warning",
  });
  await copyFile(installed("moa-runtime/wasm"), join(built, "moa_runtime_web_bg.wasm"));
  await copyFile(installed("moa-runtime/grammar-wasm"), join(built, "moa_grammar_bg.wasm"));
}

