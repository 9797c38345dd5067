// The demo's static server: types, ranges, and nothing outside its folder.

import assert from "node:assert/strict";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { request } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";

import { serve } from "../../web/serve.mjs";

let folder, server, url;
before(async () => {
  folder = mkdtempSync(join(tmpdir(), "moa-serve-"));
  mkdirSync(join(folder, "bundle/web"), { recursive: true });
  writeFileSync(join(folder, "secret"), "secret");
  writeFileSync(join(folder, "bundle/weights-000.bin"), Buffer.from(Array.from({ length: 100 }, (_, i) => i)));
  writeFileSync(join(folder, "bundle/empty.bin"), "");
  for (const name of ["index.html", "main.js", "style.css", "engine.wasm"]) writeFileSync(join(folder, "bundle/web", name), "x");
  server = await serve(join(folder, "bundle"));
  url = `http://localhost:${server.address().port}`;
});
after(() => {
  server.close();
  rmSync(folder, { recursive: true });
});

test("types are what browsers insist on", async () => {
  const types = { "web/": "text/html", "web/main.js": "text/javascript", "web/style.css": "text/css", "web/engine.wasm": "application/wasm", "weights-000.bin": "application/octet-stream" };
  for (const [path, type] of Object.entries(types)) {
    const response = await fetch(`${url}/${path}`);
    assert.equal(response.status, 200);
    assert.ok(response.headers.get("content-type").startsWith(type), path);
  }
  assert.equal((await fetch(`${url}/`)).url, `${url}/web/`);
  assert.equal((await fetch(`${url}/web`)).url, `${url}/web/`);
});

test("ranges", async () => {
  const cases = [
    ["bytes=0-9", 206, [0, 10]], ["bytes=90-", 206, [90, 100]], ["bytes=-5", 206, [95, 100]], ["bytes=50-1000", 206, [50, 100]],
    ["bytes=100-", 416, undefined], ["bytes=9-3", 416, undefined], ["lines=1-2", 200, [0, 100]],
  ];
  for (const [range, status, part] of cases) {
    const response = await fetch(`${url}/weights-000.bin`, { headers: { range } });
    assert.equal(response.status, status, range);
    if (!part) continue;
    const bytes = [...new Uint8Array(await response.arrayBuffer())];
    assert.deepEqual(bytes, Array.from({ length: part[1] - part[0] }, (_, i) => part[0] + i), range);
    if (status === 206) assert.equal(response.headers.get("content-range"), `bytes ${part[0]}-${part[1] - 1}/100`);
  }
  assert.equal((await (await fetch(`${url}/empty.bin`)).arrayBuffer()).byteLength, 0);
});

test("nothing outside the folder, nothing but reading", async () => {
  const raw = (path) => new Promise((resolve) => request(`${url}`, { path }, (response) => resolve(response.resume().statusCode)).end());
  for (const path of ["/../secret", "/..%2fsecret", "/%2e%2e/secret", "/web/../../secret"]) assert.equal(await raw(path), 404, path);
  assert.equal((await fetch(`${url}/missing`)).status, 404);
  assert.equal((await fetch(`${url}/web/main.js`, { method: "POST" })).status, 405);
  assert.equal(await (await fetch(`${url}/web/main.js`, { method: "HEAD" })).text(), "");
});

test("mounts are found under their paths, and nothing beside them", async () => {
  const mounts = { "/pages/": join(folder, "bundle/web"), "/one.bin": join(folder, "bundle/weights-000.bin") };
  const mounted = await serve(join(folder, "bundle/web"), { mounts, headers: { "x-test": "yes" } });
  try {
    const at = `http://localhost:${mounted.address().port}`;
    const page = await fetch(`${at}/pages/`);
    assert.deepEqual([page.status, page.headers.get("content-type"), page.headers.get("x-test")], [200, "text/html; charset=utf-8", "yes"]);
    assert.equal((await (await fetch(`${at}/one.bin`, { headers: { range: "bytes=0-9" } })).arrayBuffer()).byteLength, 10);
    for (const path of ["/one.bin/x", "/one.bi", "/pages/../../secret", "/pages/%2e%2e/weights-000.bin", "/weights-000.bin"]) assert.equal((await fetch(at + path)).status, 404, path);
  } finally {
    mounted.close();
  }
});
