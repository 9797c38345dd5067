/** Which kernels an engine takes: those that were asked for, those that were quickest here before, or whichever a trial finds. */

import type { GpuDeviceLike } from "./device.js";
import { sha256Hex } from "./hash.js";
import type { Store } from "./store.js";

const NAME = /^[a-z0-9+]+$/;
/** Folder of the answers of trials. */
const ANSWERS = "kernels";

interface AdapterLike {
  features?: { has(name: string): boolean };
  info?: Record<string, unknown>;
}
interface GpuLike {
  wgslLanguageFeatures?: { has(name: string): boolean };
  requestAdapter(options?: unknown): Promise<AdapterLike | null>;
}

/** What the platform has beyond WebGPU's defaults, and a name of the adapter that has it. */
export async function extrasHere(lent: GpuDeviceLike | undefined, powerPreference = "high-performance"): Promise<{ extras: string[]; adapter: string }> {
  const gpu = (globalThis.navigator as (Navigator & { gpu?: GpuLike }) | undefined)?.gpu;
  const adapter = await gpu?.requestAdapter({ powerPreference }).catch(() => null);
  const features = ((lent as AdapterLike | undefined) ?? adapter)?.features;
  const found: Record<string, boolean | undefined> = {
    subgroups: features?.has?.("subgroups"),
    f16: features?.has?.("shader-f16"),
    dp4a: gpu?.wgslLanguageFeatures?.has("packed_4x8_integer_dot_product"),
  };
  const extras = Object.keys(found).filter((name) => found[name]);
  const { vendor, architecture, device, description } = adapter?.info ?? {};
  return { extras, adapter: JSON.stringify([vendor, architecture, device, description, extras]) };
}

/** Where the answer for this adapter, engine and model is kept. */
export const answerPath = async (adapter: string, version: string, manifestJson: string) =>
  `${ANSWERS}/${await sha256Hex(new TextEncoder().encode([adapter, version, manifestJson].join("\n")))}`;

/** The answer of an earlier trial. */
export async function rememberedKernels(store: Store, path: string): Promise<string | undefined> {
  const name = await (await store.get(path))?.text();
  return name !== undefined && NAME.test(name) ? name : undefined;
}

/** Keeps an answer. Failing to do so is no failure of the load: it is found again. */
export async function rememberKernels(store: Store, path: string, name: string): Promise<void> {
  await store.put(path, new TextEncoder().encode(name)).catch(() => undefined);
}
