// Prints what a page downloads for the engine, raw, gzip and brotli, and fails above the limit in size-limit.json.
//
// Counted: the wasm module and this package's own scripts, minified, each once whether page or worker loads it. Not
// counted: the two tokenizer packages. What only a request with a JSON `response_format` loads is counted by itself.

import { readFileSync } from "node:fs";
import { brotliCompressSync, gzipSync } from "node:zlib";

import { build } from "esbuild";

const root = new URL("../", import.meta.url);
const limit = JSON.parse(readFileSync(new URL("size-limit.json", root), "utf8"));

const { outputFiles } = await build({
  entryPoints: ["src/index.ts", "src/worker.ts"].map((file) => new URL(file, root).pathname),
  external: ["@huggingface/*", "*/moa_grammar.js"],
  bundle: true,
  splitting: true,
  minify: true,
  write: false,
  format: "esm",
  outdir: "out",
});
const parts = [
  ["wasm", readFileSync(new URL("wasm/moa_runtime_web_bg.wasm", root))],
  ...outputFiles.map((file) => [file.path.split("/").at(-1), file.contents]),
];

const grammar = ["moa_grammar_bg.wasm", "moa_grammar.js"].map((file) => [file, readFileSync(new URL(`wasm/${file}`, root))]);

const row = (name, sizes) => console.log(name.padEnd(20), ...sizes.map((size) => String(size).padStart(9)));
/** Prints the parts and their total, and says whether that is too much. */
function check(parts, name, limit) {
  const total = [0, 0, 0];
  row(name, ["raw", "gzip", "brotli"]);
  for (const [part, bytes] of parts) {
    const sizes = [bytes.length, gzipSync(bytes, { level: 9 }).length, brotliCompressSync(bytes).length];
    sizes.forEach((size, i) => (total[i] += size));
    row(part, sizes);
  }
  row("total", total);
  if (total[1] <= limit) return;
  console.error(`${name} has ${total[1]} bytes gzipped; size-limit.json allows ${limit}`);
  process.exitCode = 1;
}
check(parts, "the engine", limit.gzip_bytes);
check(grammar, "response_format", limit.grammar_gzip_bytes);
