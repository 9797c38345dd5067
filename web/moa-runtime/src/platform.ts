/**
 * What differs outside a browser: files in Node.js, and two names that the wasm module expects of a global scope.
 * Nothing here runs on import.
 */

/** The little of `node:fs` that is used. */
export interface NodeFiles {
  openAsBlob(path: URL): Promise<Blob>;
  readFileSync(path: URL): Uint8Array;
}

interface NodeProcess {
  getBuiltinModule?(name: string): unknown;
}

/** Node's files, or nothing in a browser. No import: bundlers for browsers would stumble over it. */
export function nodeFiles(): NodeFiles | undefined {
  const { process } = globalThis as { process?: NodeProcess };
  return process?.getBuiltinModule?.("node:fs") as NodeFiles | undefined;
}

/**
 * Where the `init` of a wasm module finds it: `wasmUrl`, or `file` as this package has it. Nothing in a browser that was told
 * nothing: the module's script knows its place, and bundlers understand it.
 */
export function wasmSource(file: string, wasmUrl: string | undefined): { module_or_path: BufferSource | string } | undefined {
  const files = nodeFiles();
  // Node's fetch knows no files.
  if (files && (wasmUrl === undefined || wasmUrl.startsWith("file:"))) {
    return { module_or_path: files.readFileSync(new URL(wasmUrl ?? file, import.meta.url)) as BufferSource };
  }
  return wasmUrl === undefined ? undefined : { module_or_path: wasmUrl };
}

/** wgpu looks for the GPU in a window or a worker; Node.js is neither, but may have been given a `navigator.gpu`. */
export function passForWindow(): void {
  const scope = globalThis as { Window?: unknown; WorkerGlobalScope?: unknown };
  if (scope.Window === undefined && scope.WorkerGlobalScope === undefined) {
    scope.Window = class Window {};
  }
}
