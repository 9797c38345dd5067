// Stand-ins: the wasm engine (no model, but the same contract for cache, pending id, chunks, slack and copies), the
// network with its faults, and the browser's storage with its quota.

import { createHash } from "node:crypto";

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

const SLACK = 64;
const typed = (code, message) => Object.assign(new Error(message), { name: "MoaError", code });

export class FakeEngine {
  cache = [];
  longest = 0;
  pending = undefined;
  hasLogits = false;
  layers = 2;
  slack = 64;
  context;
  prefillChunk;
  /** Up to this many tokens everything can be taken back. */
  unwrapped;
  calls = [];
  /** Batches that were begun, their options, and what ends a text. */
  flights = [];
  samplings = [];
  stops = [];
  stopped = false;
  written = [];
  copies = 0;
  freed = false;
  lostReason = undefined;
  /** Runs before each step; may throw or wait. A GPU's answer comes in a task of its own. */
  beforeStep = () => new Promise((resolve) => setImmediate(resolve));

  constructor({ context = 256, prefillChunk = 8, unwrapped = 0 } = {}) {
    this.context = context;
    this.prefillChunk = prefillChunk;
    this.unwrapped = unwrapped;
  }
  get len() {
    return this.cache.length;
  }
  get rewindable() {
    return this.longest <= this.unwrapped ? this.len : Math.max(0, Math.min(this.len, this.len + SLACK - this.longest));
  }
  #grown() {
    this.longest = Math.max(this.longest, this.cache.length);
  }
  #alive() {
    if (this.lostReason !== undefined) throw typed("device-lost", `the GPU device is lost: ${this.lostReason}`);
  }
  lost() {
    return this.lostReason;
  }
  writeShard(index, offset, bytes) {
    this.written.push({ index, offset, bytes: bytes.slice() });
  }
  chunkPlaces(index, offset) {
    return Uint32Array.of(index, offset, 4 << 20);
  }
  acceptChunk() {
    throw new Error("no buffer was caught");
  }
  async finishLoading() {}
  /** Engines that others are to get of these weights. */
  forks = [];
  weightsGone = false;
  weights() {
    return {
      lost: () => this.lostReason,
      engine: async () => this.forks.shift() ?? Promise.reject(typed("out-of-memory", "no room")),
      destroy: () => (this.weightsGone = true),
      free() {},
    };
  }
  async tune() {
    this.calls.push(["tune"]);
    return "subgroups+f16";
  }
  async prefill(ids) {
    await this.beforeStep("prefill");
    this.#alive();
    const taken = Math.min(ids.length, this.prefillChunk);
    this.calls.push(["prefill", taken]);
    this.cache.push(...ids.subarray(0, taken));
    this.#grown();
    this.pending = undefined;
    this.hasLogits = true;
    return taken;
  }
  #feed() {
    if (this.pending !== undefined) this.cache.push(this.pending);
    this.pending = undefined;
    this.#grown();
  }
  /** What the device would choose: the largest logit of those that were put in place, or the model's own. */
  #choose() {
    if (!this.logitsPut) return nextToken(this.cache);
    const logits = this.logitsPut;
    this.logitsPut = undefined;
    return logits.reduce((best, logit, id) => (logit > logits[best] ? id : best), 0);
  }
  begin(count, sampling) {
    if (!this.hasLogits) throw typed("no-logits", "no logits");
    if (this.flights.reduce((sum, { ids }) => sum + ids.length, count) > SLACK) throw typed("bad-argument", "too many in flight");
    this.calls.push(["decode", count]);
    this.samplings.push(sampling);
    const ids = [];
    // After a stop token the device does nothing more.
    while (ids.length < count && !this.stopped) {
      this.#feed();
      this.pending = this.#choose();
      ids.push(this.pending);
      this.stopped = this.stops.includes(this.pending);
    }
    this.flights.push({ ids, stopped: this.stopped });
  }
  async collect() {
    await this.beforeStep("decode");
    this.#alive();
    const { ids, stopped } = this.flights.shift();
    if (stopped) this.flights = [];
    if (this.flights.length === 0) this.stopped = false;
    return Uint32Array.from(ids);
  }
  get inFlight() {
    return this.flights.length;
  }
  setStop(ids) {
    this.stops = [...ids];
  }
  setText(ids, answered) {
    this.calls.push(["setText", ids.length, answered]);
    if (ids.length !== this.cache.length) throw typed("bad-argument", "another text");
  }
  async decode(count, sampling) {
    this.begin(count, sampling);
    return this.collect();
  }
  /** The next token has logit 10, the one after it in the vocabulary 9, all others 0. */
  async logits() {
    await this.beforeStep("logits");
    this.#alive();
    this.#feed();
    const best = nextToken(this.cache);
    return Float32Array.from({ length: 1009 }, (_, id) => (id === best ? 10 : id === (best + 1) % 1009 ? 9 : 0));
  }
  setLogits(logits) {
    if (!this.hasLogits || this.pending !== undefined) throw typed("no-logits", "no logits");
    this.logitsPut = logits;
  }
  rewind(count) {
    this.calls.push(["rewind", count]);
    if (this.flights.length > 0) throw typed("bad-argument", "batches in flight");
    if (count > this.rewindable) throw typed("rewind-too-far", "too far");
    this.cache.length -= count;
    this.pending = undefined;
    this.hasLogits = false;
  }
  reset() {
    this.calls.push(["reset"]);
    this.flights = [];
    this.stopped = false;
    this.cache = [];
    this.longest = 0;
    this.pending = undefined;
    this.hasLogits = false;
  }
  async copyRings() {
    this.#alive();
    const { cache, longest } = this;
    const engine = this;
    engine.copies++;
    return { cache: [...cache], longest, len: cache.length, bytes: 10 * cache.length, destroy: () => engine.copies--, free() {} };
  }
  restoreRings(copy) {
    this.calls.push(["restoreRings", copy.len]);
    this.cache = [...copy.cache];
    this.longest = copy.longest;
    this.hasLogits = false;
    this.pending = undefined;
  }
  async saveLayer(layer) {
    return Uint8Array.from([layer, ...this.cache.map((id) => id % 256)]);
  }
  restoreLayer(layer, longest, bytes) {
    if (bytes[0] !== layer) throw typed("bad-argument", "another layer");
    this.calls.push(["restoreLayer", layer, longest]);
    this.restored = [...bytes.slice(1)];
  }
  setPosition(len, longest) {
    this.cache = this.restored.slice(0, len);
    this.longest = longest;
  }
  kvBytes() {
    return JSON.stringify({ cache: 100_000, scratch: 1, total: 100_001, dense: 400_000, kvDensity: 0.5 });
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

/** A module that makes these engines, one after the other. */
export function fakeModule(engines, { chunkBytes = 16, maxDecodeBatch = 32 } = {}) {
  const left = [engines].flat();
  const asked = [];
  const create = async (...args) => {
    asked.push(args.at(-1));
    return left.shift() ?? Promise.reject(typed("webgpu-unavailable", "no adapter"));
  };
  return { asked, version: () => "1", chunkBytes: () => chunkBytes, maxDecodeBatch: () => maxDecodeBatch, MoaEngine: { create } };
}

/** Puts a graphics adapter, and storage if given, where a browser has them; returns how to undo it. */
export function fakeNavigator({ root, onLine = true, quota = 1e9, features = ["shader-f16"], onDevice } = {}) {
  const before = Object.getOwnPropertyDescriptor(globalThis, "navigator");
  const requestDevice = async (descriptor) => {
    onDevice?.(descriptor);
    return { createBuffer: () => ({}), destroy() {} };
  };
  const requestAdapter = async () => ({ info: { description: "fake" }, features: new Set(features), limits: { maxBufferSize: 1 << 28 }, requestDevice });
  const value = { onLine, gpu: { requestAdapter } };
  if (root) value.storage = { getDirectory: async () => root, estimate: async () => ({ quota, usage: 0 }) };
  Object.defineProperty(globalThis, "navigator", { configurable: true, value });
  return () => (before ? Object.defineProperty(globalThis, "navigator", before) : delete globalThis.navigator);
}

/** A folder of the origin's private file system. `root.room` is what may still be written. */
export class FakeFolder {
  kind = "directory";
  entriesByName = new Map();
  constructor(root) {
    this.root = root ?? this;
    if (!root) this.room = Infinity;
  }
  async getDirectoryHandle(name, { create = false } = {}) {
    if (!this.entriesByName.has(name)) {
      if (!create) throw new DOMException("no such folder", "NotFoundError");
      this.entriesByName.set(name, new FakeFolder(this.root));
    }
    return this.entriesByName.get(name);
  }
  async getFileHandle(name, { create = false } = {}) {
    const { root } = this;
    let file = this.entriesByName.get(name);
    if (!file) {
      if (!create) throw new DOMException("no such file", "NotFoundError");
      file = {
        kind: "file",
        bytes: new Uint8Array(),
        getFile: async () => new Blob([file.bytes]),
        createWritable: async () => {
          let next;
          return {
            write: async (bytes) => {
              if (bytes.length > root.room) throw new DOMException("full", "QuotaExceededError");
              next = Uint8Array.from(bytes);
            },
            close: async () => { root.room -= next.length; file.bytes = next; },
            abort: async () => undefined,
          };
        },
      };
      this.entriesByName.set(name, file);
    }
    return file;
  }
  async removeEntry(name) {
    if (!this.entriesByName.delete(name)) throw new DOMException("no such entry", "NotFoundError");
  }
  async *entries() {
    yield* this.entriesByName;
  }
  /** The file at a path, to look into or to damage. */
  file(path) {
    return path.split("/").reduce((at, name) => at?.entriesByName.get(name), this);
  }
}

export const sha256 = (bytes) => createHash("sha256").update(bytes).digest("hex");

/** A shard's line of the manifest. */
export function shardEntry(file, bytes, chunkBytes = 16) {
  const chunk_sha256 = [];
  for (let at = 0; at < bytes.length; at += chunkBytes) chunk_sha256.push(sha256(bytes.subarray(at, at + chunkBytes)));
  return { file, bytes: bytes.length, chunk_sha256 };
}

/**
 * Serves `files` (path to bytes) through `fetch`, with byte ranges, in network pieces of `piece` bytes.
 *
 * `fault(request)` is asked for every request ({ path, range, count, headers, cache }) and may say what goes wrong:
 * { status }, { headers }, { body } instead of the file, { cutAt } bytes after which the connection breaks (or ends
 * quietly, with `quiet`), { stallAt }, { noRange }, { offline }.
 */
export function fakeFetch(files, { piece = 5, pauseMs = 0, fault = () => ({}) } = {}) {
  const original = globalThis.fetch;
  const requests = [];
  const counts = new Map();
  globalThis.fetch = async (url, { signal, headers = {}, cache } = {}) => {
    signal?.throwIfAborted();
    const path = new URL(url, "http://bundle.test/").pathname;
    const count = (counts.get(path) ?? 0) + 1;
    counts.set(path, count);
    const request = { path, range: headers.range, count, cache };
    requests.push(request);
    const wrong = fault(request) ?? {};
    await new Promise((resolve) => setImmediate(resolve));
    if (wrong.offline) throw new TypeError("Failed to fetch");
    if (wrong.status) return new Response("no", { status: wrong.status, headers: wrong.headers ?? {} });
    let bytes = wrong.body ?? files[path];
    if (bytes === undefined) return new Response("missing", { status: 404 });
    let status = 200;
    const answer = { ...wrong.headers };
    const range = !wrong.noRange && /^bytes=(\d+)-(\d+)$/.exec(headers.range ?? "");
    if (range) {
      const [start, end] = [Number(range[1]), Math.min(Number(range[2]), bytes.length - 1)];
      if (start >= bytes.length) return new Response("", { status: 416 });
      answer["content-range"] ??= `bytes ${start}-${end}/${bytes.length}`;
      if (answer["content-range"] === "hidden") delete answer["content-range"];
      bytes = bytes.subarray(start, end + 1);
      status = 206;
    }
    let at = 0;
    const body = new ReadableStream({
      async pull(controller) {
        await new Promise((resolve) => (pauseMs > 0 ? setTimeout(resolve, pauseMs) : setImmediate(resolve)));
        if (signal?.aborted) return controller.error(signal.reason);
        if (at >= bytes.length) return controller.close();
        if (at >= (wrong.cutAt ?? Infinity)) return wrong.quiet ? controller.close() : controller.error(new TypeError("network error"));
        if (at >= (wrong.stallAt ?? Infinity)) {
          return new Promise((_, reject) => signal?.addEventListener("abort", () => reject(signal.reason)));
        }
        const size = Math.min(piece, (wrong.cutAt ?? Infinity) - at, (wrong.stallAt ?? Infinity) - at);
        controller.enqueue(bytes.slice(at, at + size));
        at += size;
      },
    });
    return new Response(body, { status, headers: answer });
  };
  const undo = () => (globalThis.fetch = original);
  return Object.assign(undo, { requests });
}
