/**
 * The one error class. Every failure that a caller can meet carries a code from a closed list,
 * so that `switch (error.code)` is checked by the compiler.
 */

/** Causes, from the engine and from this package. */
export const MOA_ERROR_CODES = [
  /** No WebGPU, or no adapter for it. */
  "webgpu-unavailable",
  /** The adapter cannot give what the model needs. */
  "limits",
  "out-of-memory",
  "device-lost",
  /** A file could not be fetched. */
  "network",
  "bad-manifest",
  "bad-plan",
  /** A model family or shape that the engine does not know. */
  "unsupported-model",
  /** A file differs from what the manifest says. */
  "hash-mismatch",
  /** A piece of weights in the wrong place or of the wrong length. */
  "bad-chunk",
  "not-loaded",
  /** Prompt and answer do not fit into the declared context length. */
  "context-overflow",
  "rewind-too-far",
  "no-logits",
  "bad-token",
  "bad-argument",
  /** A request option that is valid elsewhere but not supported here. */
  "unsupported-option",
  /** Text was given, but the bundle serves token ids alone. */
  "no-tokenizer",
  /** The signal was aborted, or the stream was left. The engine stays usable. */
  "aborted",
  /** The engine was unloaded. */
  "unloaded",
  "shader",
  "internal",
] as const;

/** One of the causes. */
export type MoaErrorCode = (typeof MOA_ERROR_CODES)[number];

const CODES: ReadonlySet<string> = new Set(MOA_ERROR_CODES);

/** An error as it crosses from a worker. */
export interface ErrorFields {
  readonly code: MoaErrorCode;
  readonly message: string;
  readonly hint?: string | undefined;
}

/** What every rejected promise and every failed stream of this package carries. */
export class MoaError extends Error {
  override readonly name = "MoaError";
  readonly code: MoaErrorCode;
  /** What the user or developer can do about it, where there is something. */
  readonly hint: string | undefined;

  constructor(code: MoaErrorCode, message: string, options: { hint?: string | undefined; cause?: unknown } = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.code = code;
    this.hint = options.hint;
  }

  /** Any thrown value as a `MoaError`; errors of the wasm engine keep their code. */
  static from(thrown: unknown): MoaError {
    if (thrown instanceof MoaError) return thrown;
    if (thrown instanceof Error) {
      if (thrown.name === "AbortError") return new MoaError("aborted", "the request was aborted", { cause: thrown });
      const { code, hint } = thrown as Error & { code?: unknown; hint?: unknown };
      const known = typeof code === "string" && CODES.has(code);
      return new MoaError(known ? (code as MoaErrorCode) : "internal", thrown.message, {
        hint: typeof hint === "string" ? hint : undefined,
        cause: thrown,
      });
    }
    return new MoaError("internal", String(thrown));
  }

  /** The fields that survive `postMessage`. @internal */
  fields(): ErrorFields {
    return { code: this.code, message: this.message, hint: this.hint };
  }
}

/** Throws the typed error when `signal` is aborted. */
export function throwIfAborted(signal: AbortSignal | undefined): void {
  if (signal?.aborted) throw new MoaError("aborted", "the request was aborted", { cause: signal.reason });
}
