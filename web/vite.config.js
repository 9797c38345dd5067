// The pages as a folder of static files, for any server:
//
//   npx vite build --config web/vite.config.js --outDir FOLDER
//
// A page is a folder with an `index.html`. What pages share lies in `parts/`; head and top of every page come from
// `parts/frame.html`, the book from `chapters.js`.

import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

import { defineConfig } from "vite";

import { chapters } from "./chapters.js";

const here = (path) => fileURLToPath(new URL(path, import.meta.url));
const PAGES = ["find", "chat", "plan", "depth"];
/** Enough for every length that a page offers, from any place that it may begin at. */
const CHAPTERS = 40;

/** Puts the frame's blocks in place of `<!--frame: NAME-->`; the block `top` marks the page that it is on. */
function frame() {
  const blocks = Object.fromEntries(
    readFileSync(here("parts/frame.html"), "utf8").split(/^<!--(\w+)-->\n/m).slice(1)
      .reduce((pairs, part, at, parts) => (at % 2 ? pairs : [...pairs, [part, parts[at + 1].trimEnd()]]), []),
  );
  return {
    name: "moa-frame",
    transformIndexHtml: {
      order: "pre",
      handler(html, { path }) {
        const page = path.split("/").at(-2);
        return html.replace(/<!--frame: (\w+)-->/g, (_, name) =>
          blocks[name]
            .replaceAll("{up}", PAGES.includes(page) ? "../" : "./")
            .replace(` data-page="${page}"`, ' aria-current="page"')
            .replace(/ data-page="\w+"/g, ""));
      },
    },
  };
}

/** `virtual:book`: the first chapters of the book. */
function book() {
  return {
    name: "moa-book",
    resolveId: (id) => (id === "virtual:book" ? "\0book" : undefined),
    load: (id) => (id === "\0book" ? `export default JSON.parse(${JSON.stringify(JSON.stringify(chapters(CHAPTERS)))});` : undefined),
  };
}

export default defineConfig({
  root: here("."),
  base: "./",
  plugins: [frame(), book()],
  // The package finds its worker and its wasm file relative to itself: Vite's pre-bundling would move it away from them.
  optimizeDeps: { exclude: ["moa-runtime"] },
  worker: { format: "es" },
  build: {
    target: "es2022",
    sourcemap: true,
    emptyOutDir: true,
    // The content security policy allows no inline script.
    modulePreload: { polyfill: false },
    assetsInlineLimit: 0,
    rolldownOptions: {
      input: Object.fromEntries([["home", here("index.html")], ...PAGES.map((page) => [page, here(`${page}/index.html`)])]),
      checks: { pluginTimings: false },
    },
  },
});
