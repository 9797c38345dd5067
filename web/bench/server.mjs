// Serves the contenders' scripts, the weights in every format, and an empty page that is cross-origin isolated: threads in
// wasm need that.

import { copyFileSync, createReadStream, cpSync, mkdirSync, statSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

import { build } from "esbuild";

import { serve } from "../serve.mjs";

const here = fileURLToPath(new URL(".", import.meta.url));
const root = join(here, "../..");
const installed = (name) => fileURLToPath(import.meta.resolve(name));

/** Bundles every contender with its engine and puts the engines' wasm files beside them; returns the folder. */
export async function bundleContenders() {
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
  return out;
}

/** Starts the server: /bench/ the page, /bundle/ our bundle, /model.gguf, /onnx/ the exports. */
export async function startServer({ built, bundle, gguf, onnx }) {
  const empty = `<!doctype html><title>bench</title><link rel="icon" href="data:,"><script type="module">import * as page from "./page.js"; globalThis.page = page;</script>`;
  const folders = { "/bench/": built, "/bundle/": bundle, "/onnx/": onnx };
  const types = { js: "text/javascript", mjs: "text/javascript", wasm: "application/wasm", json: "application/json" };
  const server = await serve(built, {
    intercept(request, response, path) {
      response.setHeader("cross-origin-opener-policy", "same-origin");
      response.setHeader("cross-origin-embedder-policy", "require-corp");
      if (path === "/bench/") {
        response.writeHead(200, { "content-type": "text/html" }).end(empty);
        return true;
      }
      if (path === "/model.gguf") return send(request, response, gguf, types);
      const folder = Object.keys(folders).find((prefix) => path.startsWith(prefix));
      // Names come from our own pages; this server is on localhost for the length of a run.
      return folder && folders[folder] ? send(request, response, join(folders[folder], path.slice(folder.length)), types) : false;
    },
  });
  return { url: `http://localhost:${server.address().port}`, close: () => server.close() };
}

function send(request, response, file, types) {
  const info = file ? statSync(file, { throwIfNoEntry: false }) : undefined;
  if (!info?.isFile()) {
    response.writeHead(404).end();
    return true;
  }
  const headers = { "content-type": types[file.slice(file.lastIndexOf(".") + 1)] ?? "application/octet-stream", "accept-ranges": "bytes" };
  const range = /^bytes=(\d+)-(\d*)$/.exec(request.headers.range ?? "");
  const start = range ? Number(range[1]) : 0;
  const end = range?.[2] ? Math.min(Number(range[2]), info.size - 1) : info.size - 1;
  headers["content-length"] = end - start + 1;
  if (range) headers["content-range"] = `bytes ${start}-${end}/${info.size}`;
  response.writeHead(range ? 206 : 200, headers);
  if (request.method === "HEAD") response.end();
  else createReadStream(file, { start, end }).pipe(response);
  return true;
}
