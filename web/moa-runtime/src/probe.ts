/** Whether this browser can run the engine, before anything is downloaded, in a sentence for people. */

import { MoaError } from "./errors.js";

/** The verdict. */
export type Probe =
  | { ok: true; adapter: string }
  | { ok: false; message: string; hint: string };

/** The little of WebGPU that is asked here; the rest is the wasm engine's. */
interface Gpu {
  requestAdapter(options?: object): Promise<{ info?: { vendor?: string; architecture?: string; description?: string } } | null>;
}

const BROWSERS = "use a current Chrome or Edge, Safari 26 or Firefox 141 or newer, with hardware acceleration switched on";

/** Looks for a WebGPU adapter. Never throws. */
export async function probe(): Promise<Probe> {
  const gpu = (globalThis.navigator as (Navigator & { gpu?: Gpu }) | undefined)?.gpu;
  if (!gpu) {
    if (globalThis.isSecureContext === false) {
      return {
        ok: false,
        message: "This page was not loaded over a secure connection, so the browser hides WebGPU from it.",
        hint: "open it over https or on localhost",
      };
    }
    return { ok: false, message: "This browser has no WebGPU, which the model needs to run.", hint: BROWSERS };
  }
  const adapter = await gpu.requestAdapter({ powerPreference: "high-performance" }).catch(() => null);
  if (!adapter) {
    return { ok: false, message: "This browser has WebGPU, but found no graphics adapter for it.", hint: BROWSERS };
  }
  const { vendor = "", architecture = "", description = "" } = adapter.info ?? {};
  return { ok: true, adapter: description || `${vendor} ${architecture}`.trim() || "unknown adapter" };
}

/** Throws `webgpu-unavailable` with the verdict where there is no WebGPU. */
export async function requireWebGpu(): Promise<void> {
  const verdict = await probe();
  if (!verdict.ok) throw new MoaError("webgpu-unavailable", verdict.message, { hint: verdict.hint });
}
