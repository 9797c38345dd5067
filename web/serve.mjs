// A static file server for the demo and the tests: right MIME types, byte ranges, nothing cached, localhost only.
//
//   node web/serve.mjs FOLDER [--port PORT]

import { createReadStream } from "node:fs";
import { stat } from "node:fs/promises";
import { createServer } from "node:http";
import { extname, join, normalize, sep } from "node:path";
import { pipeline } from "node:stream/promises";
import { pathToFileURL } from "node:url";

const TYPES = {
  ".html": "text/html; charset=utf-8",
  ".js": "text/javascript; charset=utf-8",
  ".mjs": "text/javascript; charset=utf-8",
  ".css": "text/css; charset=utf-8",
  ".json": "application/json; charset=utf-8",
  ".map": "application/json; charset=utf-8",
  ".md": "text/markdown; charset=utf-8",
  ".svg": "image/svg+xml",
  ".wasm": "application/wasm",
};

/**
 * Serves `folder` and resolves with the server, listening; port 0 takes any free one. `mounts` are other folders or files by the path
 * that they are found under; a folder's path ends with a slash. `intercept(request, response, path)` may answer by itself: it then
 * returns true. `headers` go with every answer.
 */
export async function serve(folder, { port = 0, intercept, mounts = {}, headers = {} } = {}) {
  const server = createServer((request, response) => {
    for (const [name, value] of Object.entries(headers)) response.setHeader(name, value);
    answer({ folder, mounts, intercept }, request, response).catch((error) => {
      // A page that goes away in the middle of a file is no failure of ours.
      if (!response.headersSent) response.writeHead(500).end(String(error?.code ?? error));
      else response.destroy();
    });
  });
  await new Promise((resolve, reject) => {
    server.once("error", reject);
    server.listen(port, "127.0.0.1", resolve);
  });
  return server;
}

async function answer({ folder, mounts, intercept }, request, response) {
  const { pathname } = new URL(request.url, "http://localhost");
  const path = decodeURIComponent(pathname);
  if (intercept?.(request, response, path)) return;
  if (request.method !== "GET" && request.method !== "HEAD") return response.writeHead(405, { allow: "GET, HEAD" }).end();

  let file = find(folder, mounts, normalize(path));
  if (file === undefined) return response.writeHead(404).end();
  let info = await stat(file).catch(() => undefined);
  if (info?.isDirectory()) {
    if (!path.endsWith("/")) return response.writeHead(308, { location: `${pathname}/` }).end();
    const page = await stat(join(file, "index.html")).catch(() => undefined);
    // A bundle's folder has no page of its own; the pages lie in its subfolder.
    if (!page && path === "/") return response.writeHead(307, { location: "/web/" }).end();
    file = join(file, "index.html");
    info = page;
  }
  if (!info?.isFile()) return response.writeHead(404, { "content-type": "text/plain" }).end("not found\n");

  const headers = {
    "content-type": TYPES[extname(file)] ?? "application/octet-stream",
    "accept-ranges": "bytes",
    "cache-control": "no-cache",
    "last-modified": info.mtime.toUTCString(),
    "x-content-type-options": "nosniff",
  };
  const range = parseRange(request.headers.range, info.size);
  if (range === "unsatisfiable") {
    return response.writeHead(416, { "content-range": `bytes */${info.size}` }).end();
  }
  const { start, end } = range ?? { start: 0, end: info.size - 1 };
  if (range) headers["content-range"] = `bytes ${start}-${end}/${info.size}`;
  headers["content-length"] = end - start + 1;
  response.writeHead(range ? 206 : 200, headers);
  if (request.method === "HEAD" || info.size === 0) return response.end();
  await pipeline(createReadStream(file, { start, end }), response);
}

/** What `path` names on the disk; nothing where that would be outside of what is served. */
function find(folder, mounts, path) {
  const mount = Object.keys(mounts).find((at) => (at.endsWith("/") ? path.startsWith(at) : path === at));
  const [from, rest] = mount === undefined ? [folder, path] : [mounts[mount], path.slice(mount.length)];
  const file = join(from, rest);
  return file === from || file.startsWith(from.endsWith(sep) ? from : from + sep) ? file : undefined;
}

/** One range, as browsers ask for it; anything else is answered with the whole file, as the standard allows. */
function parseRange(header, size) {
  const match = /^bytes=(\d*)-(\d*)$/.exec(header ?? "");
  if (!match || (match[1] === "" && match[2] === "")) return undefined;
  const start = match[1] === "" ? Math.max(0, size - Number(match[2])) : Number(match[1]);
  const end = match[1] === "" || match[2] === "" ? size - 1 : Math.min(Number(match[2]), size - 1);
  return start <= end && start < size ? { start, end } : "unsatisfiable";
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? "").href) {
  const [folder, flag, port = "8080"] = process.argv.slice(2);
  if (!folder || (flag !== undefined && flag !== "--port")) {
    console.error("usage: node web/serve.mjs FOLDER [--port PORT]");
    process.exit(1);
  }
  const server = await serve(normalize(folder).replace(/(.)\/$/, "$1"), { port: Number(port) }).catch((error) => {
    console.error(error.code === "EADDRINUSE" ? `port ${port} is taken; choose another with --port` : String(error));
    process.exit(1);
  });
  console.log(`http://localhost:${server.address().port}/`);
}
