// Serves the contenders' scripts, the weights in every format, and an empty page that is cross-origin isolated: threads in
// wasm need that.

import { copyFileSync, cpSync, mkdirSync, writeFileSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";

import { serve } from "../serve.mjs";

const here = fileURLToPath(new URL(".", import.meta.url));
const root = join(here, "../..");
const installed = (name) => fileURLToPath(import.meta.resolve(name));

/** Bundles every contender with its engine and puts the engines' wasm files beside them; returns the folder. */
export async function bundleContenders() {
  // Not needed where the folder was brought along.
  const { build } = await import("esbuild");
  const out = join(root, "target/bench-web");
  mkdirSync(out, { recursive: true });
  const shared = { outdir: out, bundle: true, format: "esm", target: "es2022", logLevel: "error" };
  await build({
    ...shared,
    entryPoints: { page: join(here, "page.js"), ...Object.fromEntries(["moa", "wllama", "transformers"].map((name) => [name, join(here, `contenders/${name}.js`)])) },
    external: ["/bench/*"],
  });
  await build({ ...shared, entryPoints: { worker: installed("moa-runtime/worker") } });
  copyFileSync(installed("moa-runtime/wasm"), join(out, "moa_runtime_web_bg.wasm"));
  copyFileSync(join(dirname(installed("@wllama/wllama/package.json")), "esm/wasm/wllama.wasm"), join(out, "wllama.wasm"));
  const transformers = dirname(installed("@huggingface/transformers"));
  const ort = join(transformers.slice(0, transformers.lastIndexOf("node_modules")), "node_modules/onnxruntime-web/dist");
  cpSync(ort, join(out, "ort"), { recursive: true, filter: (path) => !path.endsWith(".map") });
  const script = `import * as page from "./page.js"; globalThis.page = page;`;
  writeFileSync(join(out, "index.html"), `<!doctype html><title>bench</title><link rel="icon" href="data:,"><script type="module">${script}</script>\n`);
  return out;
}

/** Starts the server: /bench/ the page, /bundle/ our bundle, /model.gguf, /onnx/ the exports. */
export async function startServer({ built, bundle, gguf, onnx }) {
  const all = { "/bench/": built, "/bundle/": bundle, "/model.gguf": gguf, "/onnx/": onnx };
  const mounts = Object.fromEntries(Object.entries(all).filter(([, path]) => path).map(([at, path]) => [at, resolve(path)]));
  const headers = { "cross-origin-opener-policy": "same-origin", "cross-origin-embedder-policy": "require-corp" };
  const server = await serve(built, { mounts, headers });
  return { url: `http://localhost:${server.address().port}`, close: () => server.close() };
}
