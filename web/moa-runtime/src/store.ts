/**
 * Bytes kept on this device: every chunk of weights and every small file under the name of its hash, so that models
 * and plans share what is equal, and a file is whole or not there. It checks no hash: readers do.
 */

/** Where bytes are kept. `opfs` is the origin's private file system, `cache-api` the storage of service workers. */
export type CacheKind = "opfs" | "cache-api" | "none";

/** A folder of files by path. Writing is whole or not at all. */
export interface Store {
  readonly kind: CacheKind;
  get(path: string): Promise<Blob | undefined>;
  /** Rejects with a `QuotaExceededError` where there is no room. */
  put(path: string, bytes: Uint8Array): Promise<void>;
  delete(path: string): Promise<void>;
  /** Names and sizes in a folder. */
  list(folder: string): Promise<Map<string, number>>;
}

const ROOT = "moa-runtime";

/** Opens the storage that was asked for, or the best there is; nothing where the browser gives none. */
export async function openStore(kind: CacheKind | undefined): Promise<Store | undefined> {
  if (kind === "none") return undefined;
  try {
    if (kind !== "cache-api" && typeof globalThis.navigator?.storage?.getDirectory === "function") {
      const root = await navigator.storage.getDirectory();
      return new FileStore(await root.getDirectoryHandle(ROOT, { create: true }));
    }
    if (kind !== "opfs" && "caches" in globalThis) return new ResponseStore(await caches.open(ROOT));
  } catch {
    // Private windows and blocked storage refuse: then nothing is kept.
  }
  return undefined;
}

/** Whether an error says that the storage is full. */
export function isQuotaError(error: unknown): boolean {
  return (error as { name?: unknown } | undefined)?.name === "QuotaExceededError";
}

function split(path: string): [folder: string, name: string] {
  const at = path.lastIndexOf("/");
  return [path.slice(0, at), path.slice(at + 1)];
}

/** The origin's private file system. */
class FileStore implements Store {
  readonly kind = "opfs";
  readonly #root: FileSystemDirectoryHandle;

  constructor(root: FileSystemDirectoryHandle) {
    this.#root = root;
  }

  async get(path: string): Promise<Blob | undefined> {
    const [folder, name] = split(path);
    try {
      const files = await this.#root.getDirectoryHandle(folder);
      return await (await files.getFileHandle(name)).getFile();
    } catch {
      return undefined;
    }
  }

  async put(path: string, bytes: Uint8Array): Promise<void> {
    const [folder, name] = split(path);
    const files = await this.#root.getDirectoryHandle(folder, { create: true });
    // The stream writes into a copy that takes the file's place when it is closed.
    const stream = await (await files.getFileHandle(name, { create: true })).createWritable();
    try {
      await stream.write(bytes as BufferSource);
      await stream.close();
    } catch (error) {
      await stream.abort().catch(() => undefined);
      // Creating the handle has made an empty file.
      await files.removeEntry(name).catch(() => undefined);
      throw error;
    }
  }

  async delete(path: string): Promise<void> {
    const [folder, name] = split(path);
    try {
      await (await this.#root.getDirectoryHandle(folder)).removeEntry(name);
    } catch {
      // Not there: that is what was wanted.
    }
  }

  async list(folder: string): Promise<Map<string, number>> {
    const found = new Map<string, number>();
    try {
      for await (const [name, handle] of (await this.#root.getDirectoryHandle(folder)).entries()) {
        if (handle.kind === "file") found.set(name, (await (handle as FileSystemFileHandle).getFile()).size);
      }
    } catch {
      // No such folder yet.
    }
    return found;
  }
}

/** The Cache API, whose keys must look like addresses. */
class ResponseStore implements Store {
  readonly kind = "cache-api";
  readonly #cache: Cache;

  constructor(cache: Cache) {
    this.#cache = cache;
  }

  async get(path: string): Promise<Blob | undefined> {
    return (await this.#cache.match(address(path)))?.blob();
  }

  async put(path: string, bytes: Uint8Array): Promise<void> {
    const headers = { "content-length": String(bytes.length) };
    await this.#cache.put(address(path), new Response(bytes as BufferSource, { headers }));
  }

  async delete(path: string): Promise<void> {
    await this.#cache.delete(address(path));
  }

  async list(folder: string): Promise<Map<string, number>> {
    const prefix = address(`${folder}/`);
    const found = new Map<string, number>();
    for (const request of await this.#cache.keys()) {
      if (!request.url.startsWith(prefix)) continue;
      const response = await this.#cache.match(request);
      found.set(request.url.slice(prefix.length), Number(response?.headers.get("content-length") ?? 0));
    }
    return found;
  }
}

const address = (path: string) => `https://${ROOT}.invalid/${path}`;
