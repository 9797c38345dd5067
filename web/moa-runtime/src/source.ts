/**
 * Where a bundle's files come from: a web server, a model hub, a folder that the user picked, or one tar file. All of
 * them give byte ranges as streams; none retries, checks or stores anything (see `download.ts`, `store.ts`).
 */

import { MoaError, throwIfAborted } from "./errors.js";
import { type NodeFiles, nodeFiles } from "./platform.js";

/** What `createEngine` takes as a model. */
export type ModelInput = string | URL | Blob | FileSystemDirectoryHandle;

/** The same in a form that can be posted to a worker. */
export type ModelLocation =
  | { kind: "url"; url: string }
  | { kind: "archive"; blob: Blob }
  | { kind: "folder"; folder: FileSystemDirectoryHandle };

/** A stretch of a file, `end` excluded, of a file of `total` bytes. */
export interface Stretch {
  start: number;
  end: number;
  total: number;
}

/** Bytes from `start` on: a server without byte ranges begins at 0 whatever it was asked. */
export interface OpenPart {
  start: number;
  body: ReadableStream<Uint8Array>;
}

/** How a stretch is asked for. */
export interface OpenOptions {
  signal?: AbortSignal | undefined;
  /** Past every cache on the way. */
  fresh?: boolean;
  /** Not to be kept by the browser's own cache: the bytes are stored elsewhere. */
  stored?: boolean;
}

/** A bundle's files. */
export interface Source {
  /** The file's name for messages. */
  describe(file: string): string;
  open(file: string, stretch: Stretch, options: OpenOptions): Promise<OpenPart>;
  /** A file whole. */
  read(file: string, options: OpenOptions): Promise<Uint8Array>;
}

/** A failed request. `retry` tells whether the same request may work later. */
export class FetchError extends MoaError {
  readonly retry: boolean;
  /** Milliseconds that the server asked to wait. */
  readonly waitMs: number | undefined;

  constructor(message: string, options: { retry: boolean; waitMs?: number | undefined; hint?: string; cause?: unknown }) {
    super("network", message, { hint: options.hint, cause: options.cause });
    this.retry = options.retry;
    this.waitMs = options.waitMs;
  }
}

const HUB = "https://huggingface.co";
const MANIFEST = "manifest.json";

/** Reads what a caller gave as a model. Relative URLs are resolved against the page. */
export function locate(model: ModelInput): ModelLocation {
  if (typeof model === "string" && model.startsWith("hf:")) {
    const match = /^hf:([\w.-]+)\/([\w.-]+)(?:@([\w.-]+))?$/.exec(model);
    if (!match) {
      throw new MoaError("bad-argument", `"${model}" names no repository`, { hint: 'write "hf:organisation/name@revision"' });
    }
    const [, owner, name, revision = "main"] = match;
    return { kind: "url", url: `${HUB}/${owner}/${name}/resolve/${revision}/${MANIFEST}` };
  }
  if (typeof model === "string" || model instanceof URL) {
    let url: URL;
    try {
      url = new URL(model, globalThis.location?.href);
    } catch (error) {
      throw new MoaError("bad-argument", `"${String(model)}" is no URL`, { cause: error });
    }
    if (url.pathname.endsWith("/")) url.pathname += MANIFEST;
    return { kind: "url", url: url.href };
  }
  if (model instanceof Blob) return { kind: "archive", blob: model };
  if (typeof (model as FileSystemDirectoryHandle | undefined)?.getFileHandle === "function") {
    return { kind: "folder", folder: model };
  }
  throw new MoaError("bad-argument", "`model` is no URL, Blob or directory handle");
}

/** The files of a bundle and the name of its manifest among them. */
export async function openSource(location: ModelLocation): Promise<{ source: Source; manifest: string }> {
  switch (location.kind) {
    case "url": {
      const { url } = location;
      const files = url.startsWith("file:") ? nodeFiles() : undefined;
      const name = new URL(url).pathname.split("/").at(-1) || MANIFEST;
      const manifest = decodeURIComponent(name);
      if (files) return { source: new LocalSource(url, files), manifest };
      return { source: new WebSource(url, manifest), manifest };
    }
    case "folder":
      return { source: new FolderSource(location.folder), manifest: MANIFEST };
    case "archive":
      return { source: await openArchive(location.blob), manifest: MANIFEST };
  }
}

/** A folder on a web server. */
class WebSource implements Source {
  readonly #manifestUrl: string;
  readonly #manifest: string;

  constructor(manifestUrl: string, manifest: string) {
    this.#manifestUrl = manifestUrl;
    this.#manifest = manifest;
  }

  /** Files lie beside the manifest as it was asked for: where a redirect led is nobody's business but the server's. */
  describe(file: string): string {
    return file === this.#manifest ? this.#manifestUrl : new URL(file, this.#manifestUrl).href;
  }

  async open(file: string, { start, end, total }: Stretch, options: OpenOptions): Promise<OpenPart> {
    const url = this.describe(file);
    // A whole file is asked for plainly: caches on the way know how to serve that.
    const ranged = start > 0 || end < total;
    const response = await this.#fetch(url, options, ranged ? { range: `bytes=${start}-${end - 1}` } : undefined);
    if ((response.headers.get("content-type") ?? "").startsWith("text/html")) {
      void response.body?.cancel();
      throw new FetchError(`${url} is a web page, not weights`, {
        retry: false,
        hint: "the file is missing there, and the server answers with a page instead of status 404",
      });
    }
    if (!response.body) throw new FetchError(`${url} came without a body`, { retry: true });
    const from = /^bytes (\d+)-/.exec(response.headers.get("content-range") ?? "")?.[1];
    // The header is hidden from other origins unless the server exposes it: then the hash tells.
    return { start: response.status === 206 ? Number(from ?? start) : 0, body: response.body };
  }

  async read(file: string, options: OpenOptions): Promise<Uint8Array> {
    const url = this.describe(file);
    const response = await this.#fetch(url, options);
    try {
      return new Uint8Array(await response.arrayBuffer());
    } catch (error) {
      throw networkError(url, error, options.signal);
    }
  }

  async #fetch(url: string, { signal, fresh, stored }: OpenOptions, headers?: Record<string, string>): Promise<Response> {
    throwIfAborted(signal);
    let response: Response;
    try {
      response = await fetch(url, {
        ...(signal ? { signal } : {}),
        ...(headers ? { headers } : {}),
        ...(fresh ? { cache: "reload" as const } : stored ? { cache: "no-store" as const } : {}),
      });
    } catch (error) {
      throw networkError(url, error, signal);
    }
    const { status } = response;
    if (response.ok) return response;
    void response.body?.cancel();
    if (status === 416) {
      throw new FetchError(`${url} has the wrong length: it ends before ${headers?.range ?? "its end"}`, {
        retry: false, hint: "the bundle on the server is incomplete",
      });
    }
    const wait = Number(response.headers.get("retry-after") ?? Number.NaN);
    const hint = status === 401 || status === 403
      ? "the server wants a login for this file, or a signed address has expired"
      : status === 404 ? "is the whole bundle on the server?" : undefined;
    throw new FetchError(`${url} could not be fetched: status ${status}`, {
      retry: status >= 500 || status === 408 || status === 425 || status === 429,
      waitMs: Number.isFinite(wait) ? wait * 1000 : undefined,
      ...(hint ? { hint } : {}),
    });
  }
}

function networkError(url: string, error: unknown, signal: AbortSignal | undefined): MoaError {
  if (signal?.aborted) return new MoaError("aborted", "the request was aborted", { cause: signal.reason });
  const reason = error instanceof Error ? error.message : String(error);
  // Browsers do not say why, lest pages learn of servers that are not theirs.
  const elsewhere = globalThis.location !== undefined && new URL(url).origin !== globalThis.location.origin;
  return new FetchError(`${url} could not be fetched: ${reason}`, {
    retry: true, cause: error,
    ...(elsewhere ? { hint: "is the server there, and does it let pages of other origins in (Access-Control-Allow-Origin)?" } : {}),
  });
}

/** Files that are blobs: nothing that fails once works later. */
abstract class BlobSource implements Source {
  abstract blob(file: string): Promise<Blob>;
  abstract describe(file: string): string;

  async open(file: string, { start, end, total }: Stretch, { signal }: OpenOptions): Promise<OpenPart> {
    throwIfAborted(signal);
    const blob = await this.#blob(file);
    if (blob.size !== total) {
      throw new FetchError(`${this.describe(file)} has the wrong length: expected ${total} bytes, got ${blob.size}`, {
        retry: false, hint: "the bundle is incomplete",
      });
    }
    return { start, body: blob.slice(start, end).stream() };
  }

  async read(file: string, { signal }: OpenOptions): Promise<Uint8Array> {
    throwIfAborted(signal);
    return new Uint8Array(await (await this.#blob(file)).arrayBuffer());
  }

  async #blob(file: string): Promise<Blob> {
    try {
      return await this.blob(file);
    } catch (error) {
      if (error instanceof MoaError) throw error;
      throw new FetchError(`${this.describe(file)} cannot be read: ${String(error)}`, { retry: false, cause: error });
    }
  }
}

/** A folder that the user picked, or one in the origin's private file system. */
class FolderSource extends BlobSource {
  readonly #folder: FileSystemDirectoryHandle;

  constructor(folder: FileSystemDirectoryHandle) {
    super();
    this.#folder = folder;
  }

  describe(file: string): string {
    return `${this.#folder.name}/${file}`;
  }

  async blob(file: string): Promise<Blob> {
    return (await this.#folder.getFileHandle(file)).getFile();
  }
}

/** A `file:` address, where the platform has a file system. */
class LocalSource extends BlobSource {
  readonly #manifestUrl: string;
  readonly #files: NodeFiles;

  constructor(manifestUrl: string, files: NodeFiles) {
    super();
    this.#manifestUrl = manifestUrl;
    this.#files = files;
  }

  describe(file: string): string {
    return new URL(file, this.#manifestUrl).href;
  }

  async blob(file: string): Promise<Blob> {
    return this.#files.openAsBlob(new URL(file, this.#manifestUrl));
  }
}

const TAR_BLOCK = 512;

/** A tar file of a bundle's folder. Only the headers are read here. */
async function openArchive(archive: Blob): Promise<Source> {
  const entries = new Map<string, Blob>();
  const text = (block: Uint8Array, from: number, length: number) =>
    new TextDecoder().decode(block.subarray(from, from + length)).split("\0", 1)[0] as string;
  for (let at = 0; at + TAR_BLOCK <= archive.size; ) {
    const block = new Uint8Array(await archive.slice(at, at + TAR_BLOCK).arrayBuffer());
    if (block.every((byte) => byte === 0)) break;
    const bytes = Number.parseInt(text(block, 124, 12).trim(), 8);
    if (text(block, 257, 5) !== "ustar" || !Number.isSafeInteger(bytes) || bytes < 0) {
      throw new MoaError("bad-manifest", "the file is no tar archive", {
        hint: "pack the bundle's folder uncompressed: tar cf model.tar -C FOLDER .",
      });
    }
    const start = at + TAR_BLOCK;
    const kind = text(block, 156, 1);
    // A bundle has no folders in it, so the last part of the path names the file.
    if (kind === "" || kind === "0") {
      entries.set(text(block, 0, 100).split("/").at(-1) as string, archive.slice(start, start + bytes));
    }
    at = start + Math.ceil(bytes / TAR_BLOCK) * TAR_BLOCK;
  }
  return new ArchiveSource(entries);
}

class ArchiveSource extends BlobSource {
  readonly #entries: ReadonlyMap<string, Blob>;

  constructor(entries: ReadonlyMap<string, Blob>) {
    super();
    this.#entries = entries;
  }

  describe(file: string): string {
    return `${file} of the archive`;
  }

  async blob(file: string): Promise<Blob> {
    const blob = this.#entries.get(file);
    if (!blob) throw new FetchError(`the archive holds no ${file}`, { retry: false });
    return blob;
  }
}
