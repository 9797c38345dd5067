import assert from "node:assert/strict";
import { test } from "node:test";

import { downloadShards } from "../dist/download.js";
import { fakeFetch } from "./fakes.mjs";

const bytes = (length, first = 0) => Uint8Array.from({ length }, (_, i) => (i + first) % 251);
const shard = (name, length) => ({ url: `http://bundle.test/${name}`, bytes: length });

async function download(files, shards, { chunk = 16, piece = 5, signal } = {}) {
  const undo = fakeFetch(files, { piece });
  const chunks = [];
  let counted = 0;
  try {
    await downloadShards(shards, chunk, (index, offset, part) => chunks.push({ index, offset, part: part.slice() }), (n) => (counted += n), signal);
  } finally {
    undo();
  }
  return { chunks, counted };
}

test("chunks are whole and in order, however the network cuts them", async () => {
  const files = { "/a": bytes(50), "/b": bytes(16, 9), "/c": bytes(1, 3) };
  const shards = [shard("a", 50), shard("b", 16), shard("c", 1)];
  for (const piece of [1, 3, 16, 17, 1000]) {
    const { chunks, counted } = await download(files, shards, { piece });
    assert.equal(counted, 67);
    for (const [index, name] of ["/a", "/b", "/c"].entries()) {
      const own = chunks.filter((chunk) => chunk.index === index);
      assert.deepEqual(own.map((chunk) => chunk.offset), own.map((_, i) => i * 16));
      assert.deepEqual(Buffer.concat(own.map((chunk) => chunk.part)), Buffer.from(files[name]));
    }
  }
});

test("a shard of another length is refused and named", async () => {
  for (const length of [0, 49, 51, 64]) {
    await assert.rejects(download({ "/a": bytes(length) }, [shard("a", 50)]), (error) =>
      error.code === "network" && /\/a has the wrong length: expected 50 bytes/.test(error.message));
  }
});

test("a missing shard stops the others", async () => {
  await assert.rejects(download({ "/a": bytes(50) }, [shard("a", 50), shard("missing", 50)]), (error) =>
    error.code === "network" && /missing could not be fetched: status 404/.test(error.message));
});

test("an abort is typed", async () => {
  const controller = new AbortController();
  setTimeout(() => controller.abort(), 5);
  await assert.rejects(download({ "/a": bytes(5000) }, [shard("a", 5000)], { piece: 1, signal: controller.signal }), { code: "aborted" });
});
