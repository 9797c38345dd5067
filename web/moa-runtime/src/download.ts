/**
 * Streams the shards of a bundle in hash-sized chunks. It holds one chunk per running request, never a shard;
 * checking a chunk's hash is the receiver's business.
 */

import { MoaError, throwIfAborted } from "./errors.js";

/** A shard as the manifest lists it. */
export interface ShardSource {
  readonly url: string;
  readonly bytes: number;
}

/** What to do with each chunk: shard index, offset in the shard, the bytes (valid only during the call). */
export type ChunkSink = (shard: number, offset: number, bytes: Uint8Array) => void;

/** How many requests run at a time. */
const PARALLEL = 4;

/** Fetches a file whole; any failure is a `network` error that names it. */
export async function fetchBytes(url: string, signal?: AbortSignal): Promise<Uint8Array> {
  const response = await request(url, signal);
  try {
    return new Uint8Array(await response.arrayBuffer());
  } catch (error) {
    throw networkError(url, error, signal);
  }
}

/** Fetches a text file. */
export async function fetchText(url: string, signal?: AbortSignal): Promise<string> {
  return new TextDecoder().decode(await fetchBytes(url, signal));
}

/** Fetches every shard and hands over its chunks, in order within a shard. */
export async function downloadShards(
  shards: readonly ShardSource[],
  chunkBytes: number,
  sink: ChunkSink,
  onBytes: (fetched: number) => void,
  signal?: AbortSignal,
): Promise<void> {
  let next = 0;
  // The first failure stops the other requests, too.
  const stop = new AbortController();
  const both = signal ? AbortSignal.any([signal, stop.signal]) : stop.signal;
  const lane = async () => {
    for (let index = next++; index < shards.length; index = next++) {
      await downloadShard(index, shards[index] as ShardSource, chunkBytes, sink, onBytes, both);
    }
  };
  try {
    await Promise.all(Array.from({ length: Math.min(PARALLEL, shards.length) }, lane));
  } catch (error) {
    stop.abort();
    throwIfAborted(signal);
    throw error;
  }
}

async function downloadShard(
  index: number,
  shard: ShardSource,
  chunkBytes: number,
  sink: ChunkSink,
  onBytes: (fetched: number) => void,
  signal: AbortSignal,
): Promise<void> {
  const response = await request(shard.url, signal);
  if (!response.body) throw new MoaError("network", `${shard.url} came without a body`);
  const reader = response.body.getReader();
  const chunk = new Uint8Array(Math.min(chunkBytes, shard.bytes));
  let offset = 0;
  let filled = 0;
  const wrongLength = (got: string) =>
    new MoaError("network", `${shard.url} has the wrong length: expected ${shard.bytes} bytes, got ${got}`, {
      hint: "the bundle on the server is incomplete, or the server changes files on the way",
    });
  try {
    for (;;) {
      const { done, value } = await reader.read().catch((error: unknown) => {
        throw networkError(shard.url, error, signal);
      });
      if (done) break;
      for (let at = 0; at < value.length; ) {
        const size = Math.min(chunkBytes, shard.bytes - offset);
        if (size === 0) throw wrongLength("more");
        const part = value.subarray(at, at + size - filled);
        chunk.set(part, filled);
        filled += part.length;
        at += part.length;
        if (filled === size) {
          sink(index, offset, chunk.subarray(0, size));
          offset += size;
          filled = 0;
        }
      }
      onBytes(value.length);
    }
    if (offset !== shard.bytes) throw wrongLength(String(offset + filled));
  } finally {
    reader.cancel().catch(() => undefined);
  }
}

async function request(url: string, signal?: AbortSignal): Promise<Response> {
  throwIfAborted(signal);
  let response: Response;
  try {
    response = await fetch(url, signal ? { signal } : {});
  } catch (error) {
    throw networkError(url, error, signal);
  }
  if (!response.ok) {
    throw new MoaError("network", `${url} could not be fetched: status ${response.status}`);
  }
  return response;
}

function networkError(url: string, error: unknown, signal: AbortSignal | undefined): MoaError {
  if (signal?.aborted) return new MoaError("aborted", "the request was aborted", { cause: signal.reason });
  const reason = error instanceof Error ? error.message : String(error);
  return new MoaError("network", `${url} could not be fetched: ${reason}`, { cause: error });
}
