/** The small files of a bundle: manifest, plan, tokenizer. Each is checked, and kept under its hash where there is room. */

import { chunksOf, contentPath, remember, rememberedManifest } from "./cache.js";
import { MoaError, throwIfAborted } from "./errors.js";
import { sha256Hex } from "./hash.js";
import { type FileEntry, type Manifest, type PlanEntry, parseManifest } from "./manifest.js";
import { FetchError, type ModelLocation, type Source, openSource } from "./source.js";
import { type Store, openStore, type CacheKind } from "./store.js";
import { TextCodec } from "./text.js";

/** Bytes under one hash, in every bundle. */
export const CHUNK_BYTES = 4 << 20;
/** Tries for a small file. */
const TRIES = 4;
const WAIT_MS = 300;

/** A bundle whose manifest was read. */
export class Bundle {
  readonly location: ModelLocation;
  readonly manifestJson: string;
  readonly manifest: Manifest;
  readonly #source: Source;
  readonly #store: Store | undefined;
  readonly #files: string[] = [];

  private constructor(location: ModelLocation, source: Source, json: string, store: Store | undefined) {
    this.location = location;
    this.manifestJson = json;
    this.manifest = parseManifest(json);
    this.#source = source;
    this.#store = store;
  }

  /** Reads the manifest; without a network the one of an earlier load. */
  static async open(location: ModelLocation, cache: CacheKind | undefined, signal: AbortSignal | undefined): Promise<Bundle> {
    const [{ source, manifest: name }, store] = await Promise.all([openSource(location), openStore(cache)]);
    let json: string;
    try {
      json = new TextDecoder().decode(await patiently(() => source.read(name, { signal }), signal));
    } catch (error) {
      const known = store && location.kind === "url" && (error as FetchError).retry === true
        ? await rememberedManifest(store, location.url)
        : undefined;
      if (known === undefined) throw error;
      json = known;
    }
    return new Bundle(location, source, json, store);
  }

  /** The plan by name, the bundle's own choice by default; a plan of the caller's own as an object. */
  async choosePlan(plan: string | object | undefined, signal: AbortSignal | undefined): Promise<{ name: string; bytes: Uint8Array | undefined }> {
    if (typeof plan === "object") {
      const { name } = plan as { name?: unknown };
      return { name: typeof name === "string" ? name : "custom", bytes: new TextEncoder().encode(JSON.stringify(plan)) };
    }
    const { manifest } = this;
    const name = plan ?? manifest.default_plan;
    const entry: PlanEntry | undefined = manifest.plans.find((candidate) => candidate.name === name);
    if (entry) return { name, bytes: await this.#read(entry, signal) };
    if (name === "dense") return { name, bytes: undefined };
    const names = ["dense", ...manifest.plans.map((candidate) => candidate.name)].join(", ");
    throw new MoaError("bad-plan", `the bundle has no plan named "${name}"`, { hint: `its plans are: ${names}` });
  }

  /** Tokenizer and chat template, where the bundle has them. */
  async codec(signal: AbortSignal | undefined): Promise<TextCodec | undefined> {
    const { tokenizer, files } = this.manifest;
    if (!tokenizer) return undefined;
    const read = async (name: string) => {
      const entry = files.find((candidate) => candidate.file === name);
      if (!entry) throw new MoaError("bad-manifest", `the manifest cannot be used: ${name} is not among its files`);
      return new TextDecoder().decode(await this.#read(entry, signal));
    };
    const [model, config] = await Promise.all([read(tokenizer.tokenizer), read(tokenizer.config)]);
    return new TextCodec(model, config);
  }

  /** Notes in the storage what this model needs, so that it can be listed, started without a network, and deleted. */
  async note(): Promise<void> {
    if (!this.#store || this.location.kind !== "url") return;
    const { manifest, manifestJson, location } = this;
    const bytes = manifest.shards.reduce((sum, shard) => sum + shard.bytes, 0);
    const record = { url: location.url, name: manifest.name, bytes, manifest: manifestJson, chunks: chunksOf(manifest, CHUNK_BYTES), files: this.#files };
    // A full storage is reported with the weights.
    await remember(this.#store, record).catch(() => undefined);
  }

  async #read(entry: FileEntry, signal: AbortSignal | undefined): Promise<Uint8Array> {
    this.#files.push(entry.sha256);
    const kept = await this.#store?.get(contentPath(entry.sha256));
    if (kept) {
      const bytes = new Uint8Array(await kept.arrayBuffer());
      if ((await sha256Hex(bytes)) === entry.sha256) return bytes;
    }
    // A file that came damaged is asked for once more, past the caches on the way.
    for (const fresh of [false, true]) {
      const bytes = await patiently(() => this.#source.read(entry.file, { signal, fresh }), signal);
      if ((await sha256Hex(bytes)) !== entry.sha256) continue;
      await this.#store?.put(contentPath(entry.sha256), bytes).catch(() => undefined);
      return bytes;
    }
    throw new MoaError("hash-mismatch", `${this.#source.describe(entry.file)} is damaged: its checksum is not the manifest's`, {
      hint: "fetch the bundle again, or check how the server changes files",
    });
  }
}

async function patiently<T>(work: () => Promise<T>, signal: AbortSignal | undefined): Promise<T> {
  for (let tried = 1; ; tried++) {
    try {
      return await work();
    } catch (error) {
      const again = error instanceof FetchError && error.retry && tried < TRIES && globalThis.navigator?.onLine !== false;
      if (!again) throw error;
      await new Promise((resolve) => setTimeout(resolve, error.waitMs ?? WAIT_MS * 2 ** (tried - 1)));
      throwIfAborted(signal);
    }
  }
}
