/**
 * Brings the chunks of a bundle's weights from this device's storage or from its source to a sink. Every chunk is
 * checked against its hash on the way; what fails is fetched again, from where it broke off. It holds two chunks per
 * running request, never a shard, and no wasm memory.
 */

import { contentPath } from "./cache.js";
import { MoaError, throwIfAborted } from "./errors.js";
import { sha256Hex } from "./hash.js";
import { FetchError, type Source } from "./source.js";
import { type Store, isQuotaError } from "./store.js";

/** A shard as the manifest lists it. */
export interface Shard {
  readonly file: string;
  readonly bytes: number;
  readonly chunk_sha256: readonly string[];
}

/** Takes a checked chunk. The bytes belong to the caller again once the promise resolves. */
export type ChunkSink = (shard: number, offset: number, bytes: Uint8Array) => Promise<void> | void;

/** How patient a download is. */
export interface Patience {
  /** Requests at a time. */
  lanes: number;
  /** Failures in a row, without a byte between them, that end it. */
  failures: number;
  /** First wait after a failure; it doubles with each. */
  backoffMs: number;
  longestWaitMs: number;
  /** A connection that gives no byte for so long is given up. */
  stallMs: number;
}

export const PATIENCE: Patience = { lanes: 4, failures: 6, backoffMs: 400, longestWaitMs: 20_000, stallMs: 30_000 };

/** What a load took. */
export interface LoadReport {
  /** Bytes that came from the source, those that had to come again included. */
  fetchedBytes: number;
  /** Bytes that came from this device's storage. */
  cachedBytes: number;
  /** Chunks in the storage that were damaged, and were fetched and stored again. */
  repairedChunks: number;
  /** Requests that failed and were made again. */
  retries: number;
  /** Why the weights are not kept on this device, where they are not. */
  notKept?: string;
}

/** What `downloadShards` needs. */
export interface Download {
  shards: readonly Shard[];
  chunkBytes: number;
  source: Source;
  store: Store | undefined;
  sink: ChunkSink;
  /** Called with the bytes that are here, checked or on their way; never less than before. */
  onBytes: (loaded: number, report: Readonly<LoadReport>) => void;
  signal: AbortSignal;
  patience?: Partial<Patience>;
}

/** Hands every chunk of every shard to the sink, in order within a shard. */
export async function downloadShards(download: Download): Promise<LoadReport> {
  const transfer = new Transfer(download);
  await transfer.run();
  return transfer.report;
}

class Transfer {
  readonly report: LoadReport = { fetchedBytes: 0, cachedBytes: 0, repairedChunks: 0, retries: 0 };
  readonly #download: Download;
  readonly #patience: Patience;
  /** The first failure stops the other requests, too. */
  readonly #stop = new AbortController();
  readonly #signal: AbortSignal;
  /** Sizes of what the storage holds, by hash. */
  #stored: ReadonlyMap<string, number> = new Map();
  #store: Store | undefined;
  #checked = 0;
  readonly #underway = new Map<number, number>();
  #reported = 0;

  constructor(download: Download) {
    this.#download = download;
    this.#patience = { ...PATIENCE, ...download.patience };
    this.#signal = AbortSignal.any([download.signal, this.#stop.signal]);
    this.#store = download.store;
    if (!this.#store) this.report.notKept = "the browser keeps nothing for this page, or was asked not to";
  }

  async run(): Promise<void> {
    const { shards, signal } = this.#download;
    throwIfAborted(signal);
    if (this.#store) this.#stored = await this.#store.list(contentPath("").slice(0, -1));
    let next = 0;
    const lane = async () => {
      const stored = new Uint8Array(this.#stored.size > 0 ? this.#download.chunkBytes : 0);
      for (let index = next++; index < shards.length; index = next++) await this.#shard(index, shards[index] as Shard, stored);
    };
    try {
      await Promise.all(Array.from({ length: Math.min(this.#patience.lanes, shards.length) }, lane));
    } catch (error) {
      this.#stop.abort();
      throwIfAborted(signal);
      throw error;
    }
  }

  /** Hands a shard's chunks over; those of the storage pass through `stored`. */
  async #shard(index: number, shard: Shard, stored: Uint8Array): Promise<void> {
    const { chunkBytes, sink } = this.#download;
    const chunks = shard.chunk_sha256.length;
    if (chunks !== Math.ceil(shard.bytes / chunkBytes)) {
      throw new MoaError("bad-manifest", `the manifest cannot be used: ${shard.file} has ${chunks} checksums for ${shard.bytes} bytes`);
    }
    let missing: number | undefined;
    for (let chunk = 0; chunk < chunks; chunk++) {
      throwIfAborted(this.#signal);
      const bytes = await this.#fromStore(shard, chunk, stored);
      if (!bytes) {
        missing ??= chunk;
        continue;
      }
      if (missing !== undefined) await this.#fetch(index, shard, missing, chunk);
      missing = undefined;
      await sink(index, chunk * chunkBytes, bytes);
      this.report.cachedBytes += bytes.length;
      this.#accept(index, bytes.length);
    }
    if (missing !== undefined) await this.#fetch(index, shard, missing, chunks);
  }

  async #fromStore(shard: Shard, chunk: number, into: Uint8Array): Promise<Uint8Array | undefined> {
    const sha256 = shard.chunk_sha256[chunk] as string;
    const size = this.#stored.get(sha256);
    if (size === undefined || !this.#store) return undefined;
    const blob = await this.#store.get(contentPath(sha256));
    if (blob?.size === this.#chunkSize(shard, chunk)) {
      const bytes = await readInto(blob, into);
      if ((await sha256Hex(bytes)) === sha256) return bytes;
    }
    this.report.repairedChunks++;
    await this.#store.delete(contentPath(sha256));
    return undefined;
  }

  /** Fetches the chunks from `first` to `end`, `end` excluded, in as few requests as the network allows. */
  async #fetch(index: number, shard: Shard, first: number, end: number): Promise<void> {
    const { chunkBytes, source } = this.#download;
    const run = { chunk: first, filled: 0, buffer: new Uint8Array(Math.min(chunkBytes, shard.bytes)), fresh: false, whole: false };
    const stop = Math.min(end * chunkBytes, shard.bytes);
    let failures = 0;
    let badChunk = -1;
    let endedAt = -1;
    while (run.chunk < end) {
      const before = run.chunk * chunkBytes + run.filled;
      try {
        await this.#request(index, shard, run, stop);
        if (run.chunk < end) {
          // One early end may be a connection that broke; two at the same byte are the file.
          const at = run.chunk * chunkBytes + run.filled;
          const short = endedAt === at;
          endedAt = at;
          throw new FetchError(this.#wrongLength(shard, String(at)), { retry: !short, ...(short ? { hint: WRONG_LENGTH_HINT } : {}) });
        }
      } catch (error) {
        throwIfAborted(this.#signal);
        if (error instanceof DamagedChunk) {
          // Once may be a cache on the way, or a server that compresses ranges: past all of them, and the file whole.
          if (badChunk === error.chunk) {
            throw new MoaError("hash-mismatch", `chunk ${error.chunk} of ${source.describe(shard.file)} is damaged: its checksum is not the manifest's`, {
              hint: "fetch the bundle again, or check how the server changes files",
            });
          }
          badChunk = error.chunk;
          run.fresh = run.whole = true;
          run.filled = 0;
          this.report.retries++;
          continue;
        }
        if (!(error instanceof FetchError) || !error.retry) throw error;
        failures = run.chunk * chunkBytes + run.filled > before ? 1 : failures + 1;
        // Without a network there is nothing to lose patience with.
        if (failures >= this.#patience.failures && !offline()) throw error;
        this.report.retries++;
        await this.#wait(error.waitMs ?? this.#patience.backoffMs * 2 ** (failures - 1));
      }
    }
    this.#underway.delete(index);
  }

  /** One request, from where `run` stands up to byte `stop`. */
  async #request(index: number, shard: Shard, run: Run, stop: number): Promise<void> {
    const { source, chunkBytes } = this.#download;
    const patience = new AbortController();
    const signal = AbortSignal.any([this.#signal, patience.signal]);
    let timer: ReturnType<typeof setTimeout> | undefined;
    const stalled = () => new FetchError(`${source.describe(shard.file)} gave nothing for ${this.#patience.stallMs / 1000} s`, { retry: true });
    const breathe = () => {
      clearTimeout(timer);
      timer = setTimeout(() => patience.abort(), this.#patience.stallMs);
    };
    const alive = <T>(promise: Promise<T>): Promise<T> =>
      promise.catch((error: unknown) => {
        if (patience.signal.aborted) throw stalled();
        if (error instanceof MoaError) throw error;
        const reason = error instanceof Error ? error.message : String(error);
        throw new FetchError(`${source.describe(shard.file)} broke off: ${reason}`, { retry: true, cause: error });
      });
    let reader: PieceReader | undefined;
    try {
      breathe();
      const at = run.chunk * chunkBytes + run.filled;
      const stretch = { start: run.whole ? 0 : at, end: run.whole ? shard.bytes : stop, total: shard.bytes };
      const part = await alive(source.open(shard.file, stretch, { signal, fresh: run.fresh, stored: this.#store !== undefined }));
      reader = new PieceReader(part.body);
      let position = part.start;
      if (position > at) throw new FetchError(`${source.describe(shard.file)} came from byte ${position} on instead of ${at}`, { retry: true });
      for (;;) {
        const value = await alive(reader.read());
        if (!value) break;
        this.report.fetchedBytes += value.length;
        // Bytes that are here already: of a server that knows no ranges.
        let from = Math.min(Math.max(run.chunk * chunkBytes + run.filled - position, 0), value.length);
        position += value.length;
        while (from < value.length && run.chunk * chunkBytes < stop) {
          const size = this.#chunkSize(shard, run.chunk);
          const piece = value.subarray(from, from + size - run.filled);
          run.buffer.set(piece, run.filled);
          run.filled += piece.length;
          from += piece.length;
          if (run.filled === size) {
            // The hash and the storage are no fault of the connection.
            clearTimeout(timer);
            await this.#finish(index, shard, run, size);
          }
        }
        if (position > shard.bytes) throw new FetchError(this.#wrongLength(shard, "more"), { retry: false, hint: WRONG_LENGTH_HINT });
        if (stop < shard.bytes && run.chunk * chunkBytes >= stop) break;
        this.#underway.set(index, run.filled);
        this.#tell();
        breathe();
      }
    } finally {
      clearTimeout(timer);
      reader?.cancel();
    }
  }

  /** Checks a full chunk, hands it over and stores it. */
  async #finish(index: number, shard: Shard, run: Run, size: number): Promise<void> {
    const sha256 = shard.chunk_sha256[run.chunk] as string;
    const bytes = run.buffer.subarray(0, size);
    if ((await sha256Hex(bytes)) !== sha256) throw new DamagedChunk(run.chunk);
    throwIfAborted(this.#signal);
    await Promise.all([this.#download.sink(index, run.chunk * this.#download.chunkBytes, bytes), this.#keep(sha256, bytes)]);
    run.chunk++;
    run.filled = 0;
    this.#underway.delete(index);
    this.#accept(index, size);
  }

  /** Stores a chunk. A full or broken storage ends the storing, not the load. */
  async #keep(sha256: string, bytes: Uint8Array): Promise<void> {
    if (!this.#store) return;
    try {
      await this.#store.put(contentPath(sha256), bytes);
    } catch (error) {
      this.#store = undefined;
      const reason = isQuotaError(error) ? "the browser's storage for this page is full" : `the browser's storage failed: ${String(error)}`;
      this.report.notKept ??= reason;
    }
  }

  #accept(index: number, bytes: number): void {
    this.#underway.set(index, 0);
    this.#checked += bytes;
    this.#tell();
  }

  #tell(): void {
    const loaded = this.#checked + [...this.#underway.values()].reduce((sum, bytes) => sum + bytes, 0);
    // A chunk that must come again takes nothing back from what was said.
    this.#reported = Math.max(this.#reported, loaded);
    this.#download.onBytes(this.#reported, this.report);
  }

  #chunkSize(shard: Shard, chunk: number): number {
    return Math.min(this.#download.chunkBytes, shard.bytes - chunk * this.#download.chunkBytes);
  }

  #wrongLength(shard: Shard, got: string): string {
    return `${this.#download.source.describe(shard.file)} has the wrong length: expected ${shard.bytes} bytes, got ${got}`;
  }

  /** Waits before another try, not past the moment at which the network comes back. */
  async #wait(ms: number): Promise<void> {
    const spread = Math.min(ms, this.#patience.longestWaitMs) * (0.75 + Math.random() / 2);
    await new Promise<void>((resolve) => {
      const done = () => {
        clearTimeout(timer);
        this.#signal.removeEventListener("abort", done);
        globalThis.removeEventListener?.("online", done);
        resolve();
      };
      const timer = setTimeout(done, spread);
      this.#signal.addEventListener("abort", done, { once: true });
      globalThis.addEventListener?.("online", done, { once: true });
    });
    throwIfAborted(this.#download.signal);
  }
}

/**
 * A stream in pieces, each good until the next is asked for. Where the stream can, all of them lie in the same memory: a
 * buffer for every piece would be let go only when the browser next clears up, and whole models would pile up till then.
 */
class PieceReader {
  /**
   * Those that wait for a piece. Chromium's garbage collection takes a "byob" reader to which nothing but the promise of its
   * piece refers, and that promise then never resolves.
   */
  static readonly #waiting = new Set<PieceReader>();
  readonly #plain: ReadableStreamDefaultReader<Uint8Array> | undefined;
  readonly #byob: ReadableStreamBYOBReader | undefined;
  #memory = new ArrayBuffer(PIECE_BYTES);

  constructor(stream: ReadableStream<Uint8Array>) {
    try {
      this.#byob = stream.getReader({ mode: "byob" });
    } catch {
      this.#plain = stream.getReader();
    }
  }

  /** The next piece; nothing at the end. */
  read(): Promise<Uint8Array | undefined> {
    PieceReader.#waiting.add(this);
    return this.#read().finally(() => PieceReader.#waiting.delete(this));
  }

  cancel(): void {
    (this.#plain ?? this.#byob)?.cancel().catch(() => undefined);
  }

  async #read(): Promise<Uint8Array | undefined> {
    if (this.#plain) return (await this.#plain.read()).value;
    const { done, value } = await (this.#byob as ReadableStreamBYOBReader).read(new Uint8Array(this.#memory));
    if (value) this.#memory = value.buffer as ArrayBuffer;
    return done ? undefined : value;
  }
}

const PIECE_BYTES = 256 << 10;

/** A blob's bytes, at the beginning of `into`; fewer where it cannot be read to its end. */
async function readInto(blob: Blob, into: Uint8Array): Promise<Uint8Array> {
  const reader = new PieceReader(blob.stream());
  let filled = 0;
  try {
    for (let piece = await reader.read(); piece; piece = await reader.read()) {
      into.set(piece, filled);
      filled += piece.length;
    }
  } catch {
    // Then its hash is not the right one.
  }
  return into.subarray(0, filled);
}

const offline = () => globalThis.navigator?.onLine === false;

const WRONG_LENGTH_HINT = "the bundle on the server is incomplete, or the server changes files on the way";

/** Where a stretch of chunks stands. */
interface Run {
  /** The chunk that is being filled, and how far. */
  chunk: number;
  filled: number;
  buffer: Uint8Array;
  /** Past all caches. */
  fresh: boolean;
  /** Without byte ranges. */
  whole: boolean;
}

class DamagedChunk extends Error {
  readonly chunk: number;

  constructor(chunk: number) {
    super(`chunk ${chunk} is damaged`);
    this.chunk = chunk;
  }
}
