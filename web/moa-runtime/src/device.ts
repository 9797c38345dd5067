/**
 * Between wgpu and the platform's WebGPU: lends wgpu a device that the page owns, and catches the buffers that wgpu
 * makes for weights, so that bytes go from the network to them without a copy in wasm memory; and asks for features
 * that wgpu does not know. wgpu offers none of it.
 */

import { MoaError } from "./errors.js";

/** What is used of a `GPUBuffer`. */
export interface GpuBufferLike {
  readonly label: string;
  destroy(): void;
}

/** What is used of a `GPUDevice`; any real one fits. */
export interface GpuDeviceLike {
  readonly limits: object;
  readonly features: object;
  readonly queue: {
    writeBuffer(buffer: never, offset: number, data: never): void;
    submit(commands: never[]): void;
    onSubmittedWorkDone(): Promise<unknown>;
  };
  createBuffer(descriptor: never): GpuBufferLike;
  destroy(): void;
}

interface AdapterLike {
  requestDevice(descriptor?: unknown): Promise<GpuDeviceLike>;
}

interface GpuLike {
  requestAdapter(options?: unknown): Promise<AdapterLike | null>;
}

/** A device, and the buffers on it that were asked for. */
export class Tap {
  device: GpuDeviceLike | undefined;
  readonly buffers = new Map<string, GpuBufferLike>();
  readonly #owned: boolean;
  /** Bytes written since the queue was last waited for. */
  #unsent = 0;

  constructor(owned: boolean) {
    this.#owned = owned;
  }

  /** Writes into a caught buffer; false where it was not caught. Waits now and then, so that copies do not pile up. */
  async write(label: string, offset: number, bytes: Uint8Array): Promise<boolean> {
    const buffer = this.buffers.get(label);
    if (!this.device || !buffer) return false;
    const { queue } = this.device;
    queue.writeBuffer(buffer as never, offset, bytes as never);
    // Copies are let go at a submit, be it an empty one.
    queue.submit([]);
    this.#unsent += bytes.length;
    if (this.#unsent >= MOST_UNSENT_BYTES) {
      this.#unsent = 0;
      await queue.onSubmittedWorkDone();
    }
    return true;
  }

  /** Gives a device of our own back; one that was lent is its owner's. */
  close(): void {
    if (this.#owned) this.device?.destroy();
  }
}

const MOST_UNSENT_BYTES = 8 << 20;

/** One at a time: the platform's objects are changed while an engine is being made. */
let turn: Promise<unknown> = Promise.resolve();

/** What else is wanted of the device that is asked for. */
export interface Wanted {
  /** Labels of the buffers to catch. */
  labels: ReadonlySet<string>;
  /** Features that wgpu does not know to ask for. */
  features: readonly string[];
}

/** Runs `create`, which asks for one device, with `lent` in its place if given. */
export function tapped<T>(lent: GpuDeviceLike | undefined, wanted: Wanted, create: () => Promise<T>): Promise<[T, Tap]> {
  const mine = turn.then(() => tapNow(lent, wanted, create));
  turn = mine.catch(() => undefined);
  return mine;
}

async function tapNow<T>(lent: GpuDeviceLike | undefined, { labels, features }: Wanted, create: () => Promise<T>): Promise<[T, Tap]> {
  const tap = new Tap(lent === undefined);
  const gpu = (globalThis.navigator as (Navigator & { gpu?: GpuLike }) | undefined)?.gpu;
  if (!gpu) throw new MoaError("webgpu-unavailable", "there is no WebGPU here");
  const undo: (() => void)[] = [];
  /** Puts a property of its own before that of the prototype, until the end. */
  const cover = (target: object, name: string, value: unknown) => {
    const own = Object.getOwnPropertyDescriptor(target, name);
    Object.defineProperty(target, name, { configurable: true, writable: true, value });
    undo.push(() => (own ? Object.defineProperty(target, name, own) : Reflect.deleteProperty(target, name)));
  };
  const { requestAdapter } = gpu;
  cover(gpu, "requestAdapter", async (options?: unknown) => {
    const adapter = await requestAdapter.call(gpu, options);
    if (!adapter) return adapter;
    if (lent) {
      // What this device has is all that there is.
      for (const name of ["limits", "features"] as const) cover(adapter, name, lent[name]);
    }
    const { requestDevice } = adapter;
    cover(adapter, "requestDevice", async (descriptor: { requiredFeatures?: Iterable<string> } = {}) => {
      const requiredFeatures = [...(descriptor.requiredFeatures ?? []), ...features];
      const device = lent ?? (await requestDevice.call(adapter, { ...descriptor, requiredFeatures }));
      tap.device = device;
      const { createBuffer } = device;
      cover(device, "createBuffer", (wanted: never) => {
        const buffer = createBuffer.call(device, wanted);
        const { label } = wanted as { label?: string };
        if (label !== undefined && labels.has(label)) tap.buffers.set(label, buffer);
        return buffer;
      });
      return device;
    });
    return adapter;
  });
  try {
    return [await create(), tap];
  } catch (error) {
    tap.close();
    throw error;
  } finally {
    for (const restore of undo.reverse()) restore();
  }
}
