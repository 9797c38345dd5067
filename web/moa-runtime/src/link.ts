/** Ways to the host of an engine: in a worker, in this thread, or beside another engine's. */

import { type Port, localChannel } from "./protocol.js";

/** The engines at one place. */
interface Place {
  worker: Worker | undefined;
  engines: number;
}

/** One engine's way to its host. */
export class Link {
  readonly port: Port;
  /** Resolves when the host is gone, with what is known of it. */
  readonly failure: Promise<string>;
  readonly #place: Place;
  #ended = false;

  private constructor(port: Port, failure: Promise<string>, place: Place) {
    this.port = port;
    this.failure = failure;
    this.#place = place;
  }

  /** To a worker of the package's own, or to this thread. */
  static async open(worker: boolean): Promise<Link> {
    if (worker) return Link.toWorker(new Worker(new URL("./worker.js", import.meta.url), { type: "module", name: "moa-runtime" }));
    const { attachWorkerHandler } = await import("./handler.js");
    const [near, far] = localChannel();
    attachWorkerHandler(far);
    return new Link(near, new Promise(() => undefined), { worker: undefined, engines: 1 });
  }

  static toWorker(worker: Worker): Link {
    const failure = new Promise<string>((resolve) => {
      worker.addEventListener("error", () => resolve("the engine's worker could not be started or has failed"));
      worker.addEventListener("messageerror", () => resolve("a message of the engine's worker could not be read"));
      // A worker that its owner ends says nothing.
      const { terminate } = worker;
      worker.terminate = () => {
        terminate.call(worker);
        resolve("the engine's worker was terminated");
      };
    });
    return new Link(worker, failure, { worker, engines: 1 });
  }

  /** A way to another host at the same place; `send` takes its far end there. */
  fork(send: (far: Port, transfer: Transferable[]) => void): Link {
    let near: Port;
    if (this.#place.worker) {
      const { port1, port2 } = new MessageChannel();
      send(port2, [port2]);
      near = port1;
    } else {
      const [here, there] = localChannel();
      send(there, []);
      near = here;
    }
    this.#place.engines++;
    return new Link(near, this.failure, this.#place);
  }

  /** The engine needs it no more. Ends the worker with its last engine, and returns whether it did. */
  end(): boolean {
    if (this.#ended) return false;
    this.#ended = true;
    if (--this.#place.engines > 0 || !this.#place.worker) return false;
    this.#place.worker.terminate();
    return true;
  }

  close(): void {
    this.port.close?.();
  }
}
