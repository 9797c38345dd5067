/** Starts the wasm module, in a browser or in Node.js. */

import init, * as wasm from "../wasm/moa_runtime_web.js";
import type { NativeModule } from "./bindings.js";
import { nodeFiles, passForWindow } from "./platform.js";

const FILE = "../wasm/moa_runtime_web_bg.wasm";

/** `wasmUrl` where the module does not lie beside its script. */
export async function startModule(wasmUrl: string | undefined): Promise<NativeModule> {
  const files = nodeFiles();
  if (files && (wasmUrl === undefined || wasmUrl.startsWith("file:"))) {
    passForWindow();
    // Node's fetch knows no files.
    await init({ module_or_path: files.readFileSync(new URL(wasmUrl ?? FILE, import.meta.url)) as BufferSource });
  } else {
    await (wasmUrl === undefined ? init() : init({ module_or_path: wasmUrl }));
  }
  return wasm;
}
