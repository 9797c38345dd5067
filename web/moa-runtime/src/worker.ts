/**
 * The worker's entry: the wasm engine behind the protocol. This module and what it imports use relative paths only,
 * so a worker can load it without a bundler.
 */

import { attachHost } from "./host.js";
import type { Port } from "./protocol.js";
import { startModule } from "./start.js";

attachHost(self as unknown as Port, startModule);
