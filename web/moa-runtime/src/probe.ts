/** Whether this browser can run the engine, and what a model would take, before any weight is downloaded. */

import { CHUNK_BYTES, Bundle } from "./bundle.js";
import { ModelCache } from "./cache.js";
import { MoaError } from "./errors.js";
import { type ModelInput, locate } from "./source.js";

/** A plan at one context length. */
export interface ProbedContext {
  context: number;
  /** Bytes of keys and values, one prefill chunk's included. */
  kvBytes: number;
  /** A dense cache of the same context. */
  denseBytes: number;
  kvDensity: number;
  attentionDensity: number;
}

/** What a model would take. */
export interface ProbedModel {
  name: string;
  /** Bytes of weights. */
  weightBytes: number;
  /** Bytes of them that are on this device already. */
  cachedBytes: number;
  /** Tokens that the model was trained for. */
  maxContext: number;
  defaultPlan: string;
  plans: { name: string; contexts: ProbedContext[] }[];
}

/** What was found. */
export interface Probe {
  /** Whether the engine, and the model if one was named, can run here. */
  ok: boolean;
  /** The verdict, in a sentence. */
  message: string;
  /** What to do about it, where there is something. */
  hint?: string;
  /** The graphics adapter's name. */
  adapter?: string;
  /** WebGPU features that the adapter offers. */
  features: string[];
  /** WebGPU limits that the adapter offers. */
  limits: Record<string, number>;
  /** Bytes that the browser lets this page store, and those that are taken; what it says, not a promise. */
  storage?: { quota: number; usage: number };
  model?: ProbedModel;
}

/** The little of WebGPU that is asked here; the rest is the wasm engine's. */
interface AdapterLike {
  info?: { vendor?: string; architecture?: string; description?: string };
  features?: Iterable<string>;
  limits?: unknown;
}
interface Gpu {
  requestAdapter(options?: object): Promise<AdapterLike | null>;
}

const BROWSERS = "use a current Chrome or Edge, Safari 26 or Firefox 141 or newer, with hardware acceleration switched on";
/** The limits that a page may want to see. */
const LIMITS = ["maxBufferSize", "maxStorageBufferBindingSize", "maxStorageBuffersPerShaderStage", "maxComputeWorkgroupStorageSize", "maxComputeInvocationsPerWorkgroup"] as const;

const mib = (bytes: number) => `${(bytes / (1 << 20)).toLocaleString("en", { maximumFractionDigits: 1 })} MiB`;

/** Looks for a WebGPU adapter, and reads the manifest of `model` if one is given. Never throws. */
export async function probe(model?: ModelInput): Promise<Probe> {
  const found = await probeDevice();
  const storage = await globalThis.navigator?.storage?.estimate?.().catch(() => undefined);
  if (storage?.quota !== undefined) found.storage = { quota: storage.quota, usage: storage.usage ?? 0 };
  if (model === undefined) return found;
  let probed: ProbedModel;
  try {
    probed = await probeModel(model);
  } catch (error) {
    const { message, hint } = MoaError.from(error);
    return { ...found, ok: false, message: `The model cannot be read: ${message}.`, ...(hint ? { hint } : {}) };
  }
  if (!found.ok) return { ...found, model: probed };
  const left = probed.weightBytes - probed.cachedBytes;
  const room = found.storage ? found.storage.quota - found.storage.usage : Infinity;
  const here = left === 0 ? "is on this device" : probed.cachedBytes > 0 ? `has ${mib(left)} left to download` : `is a download of ${mib(left)}`;
  const largest = probed.plans.find(({ name }) => name === probed.defaultPlan)?.contexts.at(-1);
  const memory = largest
    ? `; at ${largest.context.toLocaleString("en")} tokens its keys and values take ${mib(largest.kvBytes)} where a dense cache takes ${mib(largest.denseBytes)}`
    : "";
  const full = left > room ? "; there is no room to keep it, so it comes anew each time" : "";
  return { ...found, model: probed, message: `${probed.name} can run here and ${here}${memory}${full}.` };
}

async function probeDevice(): Promise<Probe> {
  const none = { ok: false, features: [], limits: {} };
  const gpu = (globalThis.navigator as (Navigator & { gpu?: Gpu }) | undefined)?.gpu;
  if (!gpu) {
    if (globalThis.isSecureContext === false) {
      return {
        ...none,
        message: "This page was not loaded over a secure connection, so the browser hides WebGPU from it.",
        hint: "open it over https or on localhost",
      };
    }
    return { ...none, message: "This browser has no WebGPU, which the model needs to run.", hint: BROWSERS };
  }
  const adapter = await gpu.requestAdapter({ powerPreference: "high-performance" }).catch(() => null);
  if (!adapter) {
    return { ...none, message: "This browser has WebGPU, but found no graphics adapter for it.", hint: BROWSERS };
  }
  const { vendor = "", architecture = "", description = "" } = adapter.info ?? {};
  const name = description || `${vendor} ${architecture}`.trim() || "unknown adapter";
  const limits = (adapter.limits ?? {}) as unknown as Record<string, number>;
  return {
    ok: true,
    message: `The model can run here, on ${name}.`,
    adapter: name,
    features: [...(adapter.features ?? [])].sort(),
    limits: Object.fromEntries(LIMITS.filter((limit) => limit in limits).map((limit) => [limit, limits[limit] as number])),
  };
}

async function probeModel(model: ModelInput): Promise<ProbedModel> {
  const location = locate(model);
  // Without a network the manifest of an earlier load answers.
  const { manifest } = await Bundle.open(location, location.kind === "url" ? undefined : "none", undefined);
  const cached = location.kind === "url" ? await new ModelCache().bytesOf(manifest, CHUNK_BYTES) : 0;
  return {
    name: manifest.name,
    weightBytes: manifest.shards.reduce((sum, shard) => sum + shard.bytes, 0),
    cachedBytes: cached,
    maxContext: manifest.model.max_context,
    defaultPlan: manifest.default_plan,
    plans: manifest.plans.map(({ name, at }) => ({
      name,
      contexts: at.map((figures) => ({
        context: figures.context,
        kvBytes: figures.cache_bytes + figures.scratch_bytes,
        denseBytes: figures.dense_bytes,
        kvDensity: figures.kv_density,
        attentionDensity: figures.attention_density,
      })),
    })),
  };
}

/** Throws `webgpu-unavailable` with the verdict where there is no WebGPU. */
export async function requireWebGpu(): Promise<void> {
  const { ok, message, hint } = await probeDevice();
  if (!ok) throw new MoaError("webgpu-unavailable", message, { hint });
}
