/** For a worker script of one's own: `import { attachWorkerHandler } from "moa-runtime/handler"`. */

import { attachHost } from "./host.js";
import type { Port } from "./protocol.js";
import { startModule } from "./start.js";

export type { Port } from "./protocol.js";

/** Serves an engine to the page that this worker's messages come from; give that worker to `createEngine`. */
export function attachWorkerHandler(port: Port = self as unknown as Port): void {
  attachHost(port, startModule);
}
