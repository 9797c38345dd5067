/**
 * The models that are kept on this device: a record each, which names the chunks and files that it needs. What no
 * record names any more is deleted with the last model that did.
 */

import { sha256Hex } from "./hash.js";
import type { Manifest } from "./manifest.js";
import { type ModelInput, locate } from "./source.js";
import { type CacheKind, type Store, openStore } from "./store.js";

/** Folder of chunks and small files, each under its hash. */
const CONTENT = "content";
/** Folder of records. */
const MODELS = "models";

/** A model on this device. */
export interface CachedModel {
  /** Address of its manifest. */
  url: string;
  name: string;
  /** Bytes of its weights. */
  bytes: number;
  /** Bytes of them that are here. */
  cachedBytes: number;
  /** Whether it loads without a network. */
  complete: boolean;
}

interface ModelRecord {
  url: string;
  name: string;
  bytes: number;
  /** The manifest's text, for a start without a network. */
  manifest: string;
  /** Hashes of chunks of weights, with their sizes. */
  chunks: Record<string, number>;
  /** Hashes of the other files that were asked for. */
  files: string[];
}

/** Path of the bytes with this hash. */
export const contentPath = (sha256: string) => `${CONTENT}/${sha256}`;

const recordPath = async (url: string) => `${MODELS}/${await sha256Hex(new TextEncoder().encode(url))}`;

function* chunks(manifest: Manifest, chunkBytes: number): Generator<[sha256: string, size: number], void, void> {
  for (const shard of manifest.shards) {
    for (const [index, sha256] of shard.chunk_sha256.entries()) {
      yield [sha256, Math.min(chunkBytes, shard.bytes - index * chunkBytes)];
    }
  }
}

/** Every chunk of a manifest with its size; equal chunks once. */
export function chunksOf(manifest: Manifest, chunkBytes: number): Record<string, number> {
  return Object.fromEntries(chunks(manifest, chunkBytes));
}

async function readRecord(store: Store, path: string): Promise<ModelRecord | undefined> {
  const blob = await store.get(path);
  if (!blob) return undefined;
  try {
    return JSON.parse(await blob.text()) as ModelRecord;
  } catch {
    return undefined;
  }
}

/** Notes what a model needs. Failing to do so is no failure of the load. */
export async function remember(store: Store, record: ModelRecord): Promise<void> {
  await store.put(await recordPath(record.url), new TextEncoder().encode(JSON.stringify(record)));
}

/** The manifest of an earlier load of this address. */
export async function rememberedManifest(store: Store, url: string): Promise<string | undefined> {
  return (await readRecord(store, await recordPath(url)))?.manifest;
}

async function records(store: Store): Promise<Map<string, ModelRecord>> {
  const found = new Map<string, ModelRecord>();
  for (const name of (await store.list(MODELS)).keys()) {
    const record = await readRecord(store, `${MODELS}/${name}`);
    if (record) found.set(`${MODELS}/${name}`, record);
  }
  return found;
}

/** The models on this device. All calls resolve, with nothing found, where the browser keeps nothing. */
export class ModelCache {
  readonly #kind: CacheKind | undefined;

  /** By default the kind of storage that `createEngine` takes by default. */
  constructor(kind?: CacheKind) {
    this.#kind = kind;
  }

  async list(): Promise<CachedModel[]> {
    const store = await openStore(this.#kind);
    if (!store) return [];
    const here = await store.list(CONTENT);
    return [...(await records(store)).values()].map(({ url, name, bytes, chunks, files }) => {
      const missing = Object.entries(chunks).filter(([sha256, size]) => here.get(sha256) !== size);
      const missingBytes = missing.reduce((sum, [, size]) => sum + size, 0);
      const complete = missing.length === 0 && files.every((sha256) => here.has(sha256));
      return { url, name, bytes, cachedBytes: Math.max(0, bytes - missingBytes), complete };
    });
  }

  /** Bytes of a manifest's weights that are here, whichever model brought them. */
  async bytesOf(manifest: Manifest, chunkBytes: number): Promise<number> {
    const here = await (await openStore(this.#kind))?.list(CONTENT);
    if (!here) return 0;
    let bytes = 0;
    for (const [sha256, size] of chunks(manifest, chunkBytes)) if (here.get(sha256) === size) bytes += size;
    return bytes;
  }

  /** Whether the model loads without fetching a weight. */
  async has(model: ModelInput): Promise<boolean> {
    const location = locate(model);
    if (location.kind !== "url") return false;
    return (await this.list()).some(({ url, complete }) => complete && url === location.url);
  }

  /** Deletes a model, or all, and returns the bytes that this has freed. What another model needs stays. */
  async delete(model?: ModelInput): Promise<number> {
    const store = await openStore(this.#kind);
    if (!store) return 0;
    const location = model === undefined ? undefined : locate(model);
    const needed = new Set<string>();
    for (const [path, record] of await records(store)) {
      if (location === undefined || (location.kind === "url" && location.url === record.url)) {
        await store.delete(path);
        continue;
      }
      for (const sha256 of [...Object.keys(record.chunks), ...record.files]) needed.add(sha256);
    }
    let freed = 0;
    for (const [sha256, size] of await store.list(CONTENT)) {
      if (needed.has(sha256)) continue;
      await store.delete(contentPath(sha256));
      freed += size;
    }
    return freed;
  }
}

/** The models on this device. */
export const cache = new ModelCache();
