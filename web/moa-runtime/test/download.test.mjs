// Faults of the network and of the storage, one by one: every load ends with the right bytes or with a typed error.
import assert from "node:assert/strict";
import { test } from "node:test";

import { contentPath } from "../dist/cache.js";
import { downloadShards } from "../dist/download.js";
import { locate, openSource } from "../dist/source.js";
import { openStore } from "../dist/store.js";
import { FakeFolder, fakeFetch, fakeNavigator, sha256, shardEntry } from "./fakes.mjs";

const CHUNK = 16;
const bytes = (length, first = 0) => Uint8Array.from({ length }, (_, i) => (i * 7 + first) % 251);
const FILES = { "/m/a": bytes(100), "/m/b": bytes(16, 9), "/m/c": bytes(1, 3) };
const SHARDS = ["a", "b", "c"].map((name) => shardEntry(name, FILES[`/m/${name}`]));
const QUICK = { backoffMs: 1, longestWaitMs: 2, stallMs: 5000, failures: 4 };

/** Downloads, and checks that what came out is what went in. */
async function download({ files = FILES, shards = SHARDS, fault, piece, pauseMs, store, signal = new AbortController().signal, patience } = {}) {
  const undo = fakeFetch(files, { fault, pauseMs, ...(piece ? { piece } : {}) });
  const chunks = [];
  const loaded = [];
  try {
    const { source } = await openSource(locate("http://bundle.test/m/manifest.json"));
    const report = await downloadShards({
      shards, chunkBytes: CHUNK, source, store, signal, patience: { ...QUICK, ...patience },
      sink: async (index, offset, part) => {
        const copy = part.slice();
        await new Promise((resolve) => setImmediate(resolve));
        assert.deepEqual(part, copy, "the bytes stay while the sink works");
        chunks.push({ index, offset, part: copy });
      },
      onBytes: (now) => loaded.push(now),
    });
    for (const [index, shard] of shards.entries()) {
      const own = chunks.filter((chunk) => chunk.index === index);
      assert.deepEqual(own.map((chunk) => chunk.offset), own.map((_, i) => i * CHUNK), "each chunk once and in order");
      assert.deepEqual(Buffer.concat(own.map((chunk) => chunk.part)), Buffer.from(FILES[`/m/${shard.file}`]));
    }
    assert.deepEqual(loaded, [...loaded].sort((a, b) => a - b), "progress never goes back");
    assert.equal(loaded.at(-1), shards.reduce((sum, shard) => sum + shard.bytes, 0));
    return { report, requests: undo.requests };
  } finally {
    undo();
  }
}

const first = (path, wrong) => (request) => (request.path === path && request.count === 1 ? wrong : {});

test("chunks are whole and in order, however the network cuts them", async () => {
  for (const piece of [1, 3, 16, 17, 1000]) {
    const { report, requests } = await download({ piece });
    assert.equal(report.fetchedBytes, 117);
    assert.deepEqual(requests.map(({ range }) => range), [undefined, undefined, undefined], "whole files are asked for plainly");
  }
});

test("a dropped connection goes on from the byte at which it broke", async () => {
  for (const cutAt of [0, 1, 15, 16, 17, 50, 99]) {
    const { report, requests } = await download({ fault: first("/m/a", { cutAt }) });
    assert.equal(report.retries, 1);
    assert.equal(report.fetchedBytes, 117, "nothing comes twice");
    assert.equal(requests.find(({ path, count }) => path === "/m/a" && count === 2).range, cutAt === 0 ? undefined : `bytes=${cutAt}-99`);
  }
});

test("a connection that drops again and again still gets there, as long as bytes come", async () => {
  const { report } = await download({ fault: ({ path }) => (path === "/m/a" ? { cutAt: 7 } : {}) });
  assert.equal(report.retries, 14);
});

for (const status of [408, 425, 429, 500, 502, 503, 504]) {
  test(`status ${status} is asked again, and told when it stays`, async () => {
    const { report } = await download({ fault: first("/m/b", { status, headers: { "retry-after": "0" } }) });
    assert.equal(report.retries, 1);
    await assert.rejects(download({ fault: ({ path }) => (path === "/m/b" ? { status } : {}) }), (error) =>
      error.code === "network" && error.message.includes(`/m/b could not be fetched: status ${status}`));
  });
}

for (const status of [401, 403, 404, 410]) {
  test(`status ${status} ends it at once`, async () => {
    await assert.rejects(download({ fault: ({ path, count }) => { assert.ok(path !== "/m/b" || count === 1); return path === "/m/b" ? { status } : {}; } }),
      (error) => error.code === "network" && error.message.includes(`status ${status}`));
  });
}

test("no network at all: tried again, then told", async () => {
  const { report } = await download({ fault: ({ count }) => ({ offline: count === 1 }) });
  assert.equal(report.retries, 3);
  await assert.rejects(download({ fault: () => ({ offline: true }) }), (error) => error.code === "network" && /Failed to fetch/.test(error.message));
});

test("while the browser knows that it is offline, a download waits", async (t) => {
  t.after(fakeNavigator({ onLine: false }));
  const { report } = await download({ fault: ({ path, count }) => ({ offline: path === "/m/a" && count < 12 }) });
  assert.ok(report.retries >= 11, "more failures than its patience has");
});

test("a server that stalls is left, and asked again", async () => {
  for (const stallAt of [0, 20]) {
    const { report } = await download({ fault: first("/m/a", { stallAt }), patience: { stallMs: 60 } });
    assert.equal(report.retries, 1);
  }
  await assert.rejects(download({ fault: ({ path }) => (path === "/m/c" ? { stallAt: 0 } : {}), patience: { stallMs: 60 } }), (error) =>
    error.code === "network" && /gave nothing for/.test(error.message));
});

test("a slow trickle is no stall", async () => {
  // Takes several times as long as it may stall.
  const slow = { stallMs: 300 };
  const start = performance.now();
  const { report } = await download({ pauseMs: 15, patience: slow });
  assert.ok(performance.now() - start > slow.stallMs);
  assert.equal(report.retries, 0);
});

test("a server without byte ranges: what is here already is passed over", async () => {
  const { report } = await download({ fault: ({ path, count }) => (path === "/m/a" && count === 1 ? { cutAt: 40 } : { noRange: true }) });
  assert.equal(report.fetchedBytes, 117 + 40);
});

test("a server that hides Content-Range is believed, and its bytes are checked", async () => {
  await download({ fault: ({ path, count }) => (path === "/m/a" && count === 1 ? { cutAt: 40 } : { headers: { "content-range": "hidden" } }) });
});

test("a range that is not the one asked for is noticed", async () => {
  // The server answers a later stretch than was asked for, as if it were right.
  const shifted = { body: FILES["/m/a"], headers: { "content-range": "bytes 44-99/100" } };
  const { report } = await download({ fault: ({ path, count }) => (path === "/m/a" ? [{ cutAt: 40 }, shifted][count - 1] : {}) });
  assert.equal(report.retries, 2);
});

test("wrong bytes: once is a cache on the way, twice is the file", async () => {
  const wrong = FILES["/m/a"].slice();
  wrong[50] ^= 1;
  const { report, requests } = await download({ fault: first("/m/a", { body: wrong }) });
  assert.equal(report.retries, 1);
  const again = requests.find(({ path, count }) => path === "/m/a" && count === 2);
  assert.deepEqual([again.range, again.cache], [undefined, "reload"], "past every cache, and whole: a server may compress ranges");
  await assert.rejects(download({ fault: ({ path }) => (path === "/m/a" ? { body: wrong } : {}) }), (error) =>
    error.code === "hash-mismatch" && /chunk 3 of .*\/m\/a is damaged/.test(error.message) && error.hint.length > 0);
});

test("a file of another length is refused and named", async () => {
  for (const length of [0, 15, 64, 99]) {
    for (const noRange of [false, true]) {
      const body = FILES["/m/a"].slice(0, length);
      await assert.rejects(download({ fault: ({ path }) => (path === "/m/a" ? { body, noRange } : {}) }), (error) =>
        error.code === "network" && /\/m\/a has the wrong length/.test(error.message));
    }
  }
  const longer = Uint8Array.from([...FILES["/m/a"], 1, 2, 3]);
  await assert.rejects(download({ fault: ({ path }) => (path === "/m/a" ? { body: longer } : {}) }), /wrong length: expected 100 bytes, got more/);
});

test("an early end that was only a connection is no wrong length", async () => {
  const { report } = await download({ fault: first("/m/a", { cutAt: 33, quiet: true }) });
  assert.equal(report.retries, 1);
});

test("a page instead of weights is told as such; any other type will do", async () => {
  const page = { body: new TextEncoder().encode("<!doctype html>"), headers: { "content-type": "text/html; charset=utf-8" } };
  await assert.rejects(download({ fault: ({ path }) => (path === "/m/b" ? page : {}) }), (error) =>
    error.code === "network" && /is a web page, not weights/.test(error.message));
  for (const type of ["text/plain", "application/x-msdownload", ""]) await download({ fault: () => ({ headers: { "content-type": type } }) });
});

test("a missing file stops the others", async () => {
  const { "/m/c": _, ...rest } = FILES;
  await assert.rejects(download({ files: rest }), (error) => error.code === "network" && /\/m\/c could not be fetched: status 404/.test(error.message));
});

test("an abort is typed, in the middle of bytes and of a wait", async () => {
  for (const fault of [undefined, () => ({ status: 500 })]) {
    const controller = new AbortController();
    setTimeout(() => controller.abort(), 5);
    // A pause after each of 117 bytes: they cannot all be there by then.
    await assert.rejects(download({ piece: 1, pauseMs: 1, fault, signal: controller.signal, patience: { backoffMs: 10_000, longestWaitMs: 10_000 } }), { code: "aborted" });
  }
});

test("checksums that do not fit the length are the manifest's fault", async () => {
  const [shard] = SHARDS;
  await assert.rejects(download({ shards: [{ ...shard, chunk_sha256: shard.chunk_sha256.slice(1) }] }), { code: "bad-manifest" });
});

async function storage(t) {
  const root = new FakeFolder();
  t.after(fakeNavigator({ root }));
  return { root, store: await openStore("opfs"), chunk: (n) => root.file(`moa-runtime/content/${SHARDS[0].chunk_sha256[n]}`) };
}

test("what was fetched is stored, and the second time nothing is", async (t) => {
  const { store } = await storage(t);
  assert.equal((await download({ store })).report.cachedBytes, 0);
  const { report, requests } = await download({ store });
  assert.deepEqual([report.fetchedBytes, report.cachedBytes, report.notKept], [0, 117, undefined]);
  assert.equal(requests.length, 0);
});

test("a load that was broken off goes on where it stopped", async (t) => {
  const { store, root } = await storage(t);
  const controller = new AbortController();
  const waiting = download({ store, piece: 1, signal: controller.signal, patience: { lanes: 1 }, shards: SHARDS.slice(0, 1) });
  while (root.file("moa-runtime/content")?.entriesByName.size !== 3) await new Promise((resolve) => setImmediate(resolve));
  controller.abort();
  await assert.rejects(waiting, { code: "aborted" });
  const { report, requests } = await download({ store });
  assert.ok(report.cachedBytes >= 48);
  assert.equal(report.fetchedBytes + report.cachedBytes, 117);
  assert.equal(requests.find(({ path }) => path === "/m/a").range, `bytes=${report.cachedBytes}-99`);
});

test("stored bytes that are damaged, cut or lost are fetched again and stored right", async (t) => {
  const { store, root, chunk } = await storage(t);
  await download({ store });
  chunk(1).bytes[3] ^= 1;
  chunk(3).bytes = chunk(3).bytes.slice(0, 5);
  await store.delete(contentPath(SHARDS[0].chunk_sha256[5]));
  const { report, requests } = await download({ store });
  assert.equal(report.repairedChunks, 2);
  assert.deepEqual(requests.map(({ range }) => range), ["bytes=16-31", "bytes=48-63", "bytes=80-95"]);
  for (const [name, file] of root.file("moa-runtime/content").entriesByName) assert.equal(sha256(file.bytes), name);
  assert.equal((await download({ store })).requests.length, 0);
});

test("a full storage ends the storing, not the load, and is told", async (t) => {
  const { store, root } = await storage(t);
  root.room = 40;
  const { report } = await download({ store });
  assert.match(report.notKept, /storage for this page is full/);
  for (const [name, file] of root.file("moa-runtime/content").entriesByName) assert.equal(sha256(file.bytes), name, "nothing half is left");
  root.room = Infinity;
  assert.equal((await download({ store })).report.notKept, undefined);
});

test("without storage the load says so", async () => {
  assert.match((await download()).report.notKept, /keeps nothing/);
});
