// A stand-in for the wasm engine: no model, but the same contract for cache, pending id, chunks and slack.

/** The next token after `ids`: a fixed function, so that any mistake in what the cache holds shows. */
export function nextToken(ids) {
  let hash = 7;
  for (const id of ids) hash = (hash * 31 + id + 1) % 1009;
  return hash;
}

/** The greedy continuation of `ids`. */
export function continuation(ids, count) {
  const all = [...ids];
  for (let i = 0; i < count; i++) all.push(nextToken(all));
  return all.slice(ids.length);
}

export class FakeEngine {
  cache = [];
  pending = undefined;
  hasLogits = false;
  context;
  prefillChunk;
  calls = [];
  written = [];
  freed = false;
  /** Runs before each step; may throw or wait. A GPU's answer comes in a task of its own. */
  beforeStep = () => new Promise((resolve) => setImmediate(resolve));

  constructor({ context = 256, prefillChunk = 8 } = {}) {
    this.context = context;
    this.prefillChunk = prefillChunk;
  }
  get len() {
    return this.cache.length;
  }
  writeShard(index, offset, bytes) {
    this.written.push({ index, offset, bytes: bytes.slice() });
  }
  async finishLoading() {}
  async prefill(ids) {
    await this.beforeStep("prefill");
    const taken = Math.min(ids.length, this.prefillChunk);
    this.calls.push(["prefill", taken]);
    this.cache.push(...ids.subarray(0, taken));
    this.pending = undefined;
    this.hasLogits = true;
    return taken;
  }
  async decode(count) {
    await this.beforeStep("decode");
    if (!this.hasLogits) throw Object.assign(new Error("no logits"), { name: "MoaError", code: "no-logits" });
    this.calls.push(["decode", count]);
    const ids = [];
    for (let i = 0; i < count; i++) {
      if (this.pending !== undefined) this.cache.push(this.pending);
      this.pending = nextToken(this.cache);
      ids.push(this.pending);
    }
    return Uint32Array.from(ids);
  }
  async logits() {
    return Float32Array.from({ length: 4 }, (_, i) => (i === nextToken(this.cache) % 4 ? 1 : 0));
  }
  rewind(count) {
    this.calls.push(["rewind", count]);
    if (count > 64) throw Object.assign(new Error("too far"), { code: "rewind-too-far" });
    this.cache.length -= count;
    this.pending = undefined;
    this.hasLogits = false;
  }
  reset() {
    this.calls.push(["reset"]);
    this.cache = [];
    this.pending = undefined;
    this.hasLogits = false;
  }
  kvBytes() {
    return JSON.stringify({ cache: 1, scratch: 1, total: 2, dense: 4, kvDensity: 0.5 });
  }
  gpuBytes() {
    return JSON.stringify({ total: 10 });
  }
  planJson() {
    return "{}";
  }
  spansJson() {
    return JSON.stringify({ sink: 0, context: this.context, spans: [[64]] });
  }
  adapterJson() {
    return JSON.stringify({ name: "fake", vendor: "", backend: "", software: true });
  }
  destroy() {}
  free() {
    this.freed = true;
  }
}

/** A module whose engine is `engine`. */
export function fakeModule(engine, { chunkBytes = 16, maxDecodeBatch = 32 } = {}) {
  return { chunkBytes: () => chunkBytes, maxDecodeBatch: () => maxDecodeBatch, MoaEngine: { create: async () => engine } };
}

/** Serves `files` (path to bytes) through `fetch` in network pieces of `piece` bytes; returns how to undo it. */
export function fakeFetch(files, { piece = 5 } = {}) {
  const original = globalThis.fetch;
  globalThis.fetch = async (url, { signal } = {}) => {
    signal?.throwIfAborted();
    const bytes = files[new URL(url, "http://bundle.test/").pathname];
    if (bytes === undefined) return new Response("missing", { status: 404 });
    let at = 0;
    const body = new ReadableStream({
      async pull(controller) {
        await new Promise((resolve) => setImmediate(resolve));
        if (signal?.aborted) return controller.error(signal.reason);
        if (at >= bytes.length) return controller.close();
        controller.enqueue(bytes.slice(at, at + piece));
        at += piece;
      },
    });
    return new Response(body, { status: 200 });
  };
  return () => (globalThis.fetch = original);
}
