/** Starts the wasm module, in a browser or in Node.js. */

import init, * as wasm from "../wasm/moa_runtime_web.js";
import type { NativeModule } from "./bindings.js";
import { passForWindow, wasmSource } from "./platform.js";

/** `wasmUrl` where the module does not lie beside its script. */
export async function startModule(wasmUrl: string | undefined): Promise<NativeModule> {
  passForWindow();
  await init(wasmSource("../wasm/moa_runtime_web_bg.wasm", wasmUrl));
  return wasm;
}
