/**
 * The part of a bundle's manifest that the page reads. The engine checks the whole of it, its seal included, before a
 * weight is fetched; here only what this side uses is checked, since nothing from a network is trusted.
 */

import { MoaError } from "./errors.js";

/** A plan at one declared context length, from the manifest. */
export interface PlanFigures {
  context: number;
  kv_density: number;
  attention_density: number;
  cache_bytes: number;
  scratch_bytes: number;
  dense_bytes: number;
}

/** A file that is read whole. */
export interface FileEntry {
  file: string;
  bytes: number;
  sha256: string;
}

/** A plan of the bundle. */
export interface PlanEntry extends FileEntry {
  name: string;
  at: PlanFigures[];
}

/** What the page uses of a manifest. */
export interface Manifest {
  name: string;
  model: { max_context: number; eos: number[] };
  tokenizer: { tokenizer: string; config: string } | null;
  default_plan: string;
  plans: PlanEntry[];
  files: FileEntry[];
  /** Weights, with the hash of each chunk. */
  shards: { file: string; bytes: number; chunk_sha256: string[] }[];
}

/** Reads a manifest's text; throws `bad-manifest`. */
export function parseManifest(json: string): Manifest {
  let value: unknown;
  try {
    value = JSON.parse(json);
  } catch (error) {
    throw bad("it is no JSON", error);
  }
  const root = object(value, "the manifest");
  const model = object(root.model, "model");
  const tokenizer = root.tokenizer == null ? null : object(root.tokenizer, "tokenizer");
  return {
    name: string(root.name, "name"),
    model: {
      max_context: count(model.max_context, "model.max_context"),
      eos: array(model.eos, "model.eos").map((id) => count(id, "model.eos")),
    },
    tokenizer: tokenizer && {
      tokenizer: fileName(tokenizer.tokenizer),
      config: fileName(tokenizer.config),
    },
    default_plan: string(root.default_plan, "default_plan"),
    plans: array(root.plans, "plans").map((entry) => {
      const plan = object(entry, "plan");
      return {
        ...fileEntry(plan),
        name: string(plan.name, "plan name"),
        at: array(plan.at, "plan figures").map((at) => figures(object(at, "plan figures"))),
      };
    }),
    files: array(root.files, "files").map((entry) => fileEntry(object(entry, "file"))),
    shards: array(root.shards, "shards").map((entry) => {
      const shard = object(entry, "shard");
      return {
        file: fileName(shard.file),
        bytes: count(shard.bytes, "shard bytes"),
        chunk_sha256: array(shard.chunk_sha256, "shard checksums").map((hash) => sha256(hash)),
      };
    }),
  };
}

type Fields = Record<string, unknown>;

function figures(at: Fields): PlanFigures {
  return {
    context: count(at.context, "context"),
    kv_density: number(at.kv_density, "kv_density"),
    attention_density: number(at.attention_density, "attention_density"),
    cache_bytes: count(at.cache_bytes, "cache_bytes"),
    scratch_bytes: count(at.scratch_bytes, "scratch_bytes"),
    dense_bytes: count(at.dense_bytes, "dense_bytes"),
  };
}

function fileEntry(entry: Fields): FileEntry {
  return { file: fileName(entry.file), bytes: count(entry.bytes, "bytes"), sha256: sha256(entry.sha256) };
}

/** Hashes name files in the browser's storage. */
function sha256(value: unknown): string {
  const hash = string(value, "sha256");
  if (!/^[0-9a-f]{64}$/.test(hash)) throw bad(`${JSON.stringify(hash)} is no checksum`);
  return hash;
}

/** File names become URLs: none may leave the bundle's folder. */
function fileName(value: unknown): string {
  const name = string(value, "file name");
  if (!/^[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}$/.test(name)) throw bad(`${JSON.stringify(name)} is no file name`);
  return name;
}

function object(value: unknown, what: string): Fields {
  if (typeof value === "object" && value !== null && !Array.isArray(value)) return value as Fields;
  throw bad(`${what} is missing or no object`);
}

function array(value: unknown, what: string): unknown[] {
  if (Array.isArray(value)) return value as unknown[];
  throw bad(`${what} is missing or no list`);
}

function string(value: unknown, what: string): string {
  if (typeof value === "string") return value;
  throw bad(`${what} is missing or no text`);
}

function number(value: unknown, what: string): number {
  if (typeof value === "number" && Number.isFinite(value)) return value;
  throw bad(`${what} is missing or no number`);
}

function count(value: unknown, what: string): number {
  if (Number.isSafeInteger(value) && (value as number) >= 0) return value as number;
  throw bad(`${what} is missing or no count`);
}

function bad(reason: string, cause?: unknown): MoaError {
  return new MoaError("bad-manifest", `the manifest cannot be used: ${reason}`, { cause });
}
