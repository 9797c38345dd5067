/**
 * The worker's entry: the wasm engine behind the protocol. This module and what it imports use relative paths only,
 * so a worker can load it without a bundler.
 */

import init, * as wasm from "../wasm/moa_runtime_web.js";
import type { NativeModule } from "./bindings.js";
import { attachHost } from "./host.js";
import type { Port } from "./protocol.js";

attachHost(self as unknown as Port, async (wasmUrl): Promise<NativeModule> => {
  await (wasmUrl === undefined ? init() : init({ module_or_path: wasmUrl }));
  return wasm;
});
