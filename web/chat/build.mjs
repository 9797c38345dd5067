// Bundles the chat page into a folder of static files:
//
//   node web/chat/build.mjs FOLDER
//
// The package's worker and wasm file lie beside the page's script: that is where the script looks for them.

import { copyFileSync, mkdirSync } from "node:fs";
import { fileURLToPath } from "node:url";

import { build } from "esbuild";

const out = process.argv[2];
if (!out) {
  console.error("usage: node web/chat/build.mjs FOLDER");
  process.exit(1);
}
const here = (path) => fileURLToPath(new URL(path, import.meta.url));
const installed = (name) => fileURLToPath(import.meta.resolve(name));

mkdirSync(out, { recursive: true });
const options = { outdir: out, bundle: true, target: "es2022", minify: true, sourcemap: true, logLevel: "warning" };
await build({
  ...options,
  entryPoints: { main: here("src/main.ts"), worker: installed("moa-runtime/worker") },
  splitting: true,
  format: "esm",
});
// A service worker is one classic script.
await build({ ...options, entryPoints: { offline: here("src/offline.ts") }, format: "iife" });
copyFileSync(installed("moa-runtime/wasm"), `${out}/moa_runtime_web_bg.wasm`);
for (const file of ["index.html", "style.css", "icon.svg"]) copyFileSync(here(`src/${file}`), `${out}/${file}`);
