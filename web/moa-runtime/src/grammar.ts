/**
 * Which tokens an answer of a given JSON schema may go on with: llguidance, in a wasm module of its own that is loaded with
 * the first request that needs it.
 */

import { MoaError } from "./errors.js";
import { wasmSource } from "./platform.js";

/** The model's tokens as bytes, all in a row; tokens that no text may hold have none. */
export interface TokenTable {
  bytes: Uint8Array;
  lengths: Uint32Array;
}

/** What an answer must look like. */
export interface Constraint {
  /** A JSON schema, as text. */
  schema: string;
  vocabulary: TokenTable;
}

/** One answer under a constraint. */
export interface Grammar {
  /** Takes from `logits` what may not come next. */
  mask(logits: Float32Array): void;
  /** Goes on with a token. */
  accept(id: number): void;
  free(): void;
}

/** What is used of the wasm module. */
interface NativeGrammar {
  mask(): Uint32Array;
  accept(id: number): void;
  free(): void;
}
interface NativeVocabulary {
  grammar(schema: string): NativeGrammar;
}

/** Makes grammars for one model: its vocabulary is taken in once. */
export class Grammars {
  readonly #wasmUrl: string | undefined;
  #vocabulary: Promise<NativeVocabulary> | undefined;

  /** `wasmUrl` where the module does not lie beside its script. */
  constructor(wasmUrl: string | undefined) {
    this.#wasmUrl = wasmUrl;
  }

  /** The grammar of one answer; `ends` are the tokens that end it. */
  async grammar({ schema, vocabulary }: Constraint, ends: readonly number[]): Promise<Grammar> {
    const [eos] = ends;
    if (eos === undefined) throw new MoaError("unsupported-option", "`response_format` needs a token that ends an answer, and there is none");
    this.#vocabulary ??= load(this.#wasmUrl, vocabulary, eos);
    // A module that could not be fetched may be there the next time.
    const native = await this.#vocabulary.catch((error: unknown) => {
      this.#vocabulary = undefined;
      throw MoaError.from(error);
    });
    let grammar: NativeGrammar;
    try {
      grammar = native.grammar(schema);
    } catch (error) {
      throw new MoaError("bad-argument", `the schema in \`response_format\` cannot be used: ${(error as Error).message}`, { cause: error });
    }
    return {
      mask(logits) {
        const allowed = grammar.mask();
        const may = (id: number) => ((allowed[id >> 5] ?? 0) >>> (id & 31)) & 1;
        const end = may(eos);
        const last = ends.map((id) => logits[id]);
        for (let id = 0; id < logits.length; id++) if (!may(id)) logits[id] = -Infinity;
        // The grammar knows one end; the model may have several.
        if (end) for (const [at, id] of ends.entries()) logits[id] = last[at] ?? -Infinity;
      },
      accept(id) {
        if (!ends.includes(id)) grammar.accept(id);
      },
      free: () => grammar.free(),
    };
  }
}

async function load(wasmUrl: string | undefined, { bytes, lengths }: TokenTable, eos: number): Promise<NativeVocabulary> {
  const { default: init, Vocabulary } = await import("../wasm/moa_grammar.js");
  try {
    await init(wasmSource("../wasm/moa_grammar_bg.wasm", wasmUrl));
  } catch (error) {
    throw new MoaError("network", `the module for \`response_format\` cannot be loaded: ${String(error)}`, { cause: error });
  }
  return new Vocabulary(bytes, lengths, eos);
}
