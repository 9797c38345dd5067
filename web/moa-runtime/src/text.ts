/** Text to ids and back: the bundle's tokenizer and chat template, and decoding piece by piece. */

import { Template } from "@huggingface/jinja";
import { Tokenizer } from "@huggingface/tokenizers";

import { MoaError } from "./errors.js";
import type { TokenTable } from "./grammar.js";
import { type TokenizerModel, tokenTable } from "./vocabulary.js";

/** A turn of a conversation. */
export interface ChatMessage {
  role: "system" | "user" | "assistant" | (string & {});
  content: string;
}

/** The fields of tokenizer_config.json that matter here. */
interface TokenizerConfig {
  chat_template?: string | { name: string; template: string }[];
  [token: string]: unknown;
}

/** A tokenizer with its chat template. */
export class TextCodec {
  readonly #tokenizer: Tokenizer;
  readonly #template: Template | undefined;
  readonly #specialTokens: Record<string, string> = {};
  readonly #model: TokenizerModel;
  #vocabulary: TokenTable | undefined;

  /** Both as the text of the bundle's files. */
  constructor(tokenizerJson: string, tokenizerConfigJson: string) {
    try {
      const config = JSON.parse(tokenizerConfigJson) as TokenizerConfig;
      this.#model = JSON.parse(tokenizerJson) as TokenizerModel;
      this.#tokenizer = new Tokenizer(this.#model, config);
      for (const name of ["bos_token", "eos_token", "unk_token", "pad_token"]) {
        const token = config[name];
        const text = typeof token === "object" && token !== null ? (token as { content?: unknown }).content : token;
        if (typeof text === "string") this.#specialTokens[name] = text;
      }
      const templates = config.chat_template;
      const source = Array.isArray(templates) ? templates.find((t) => t.name === "default")?.template : templates;
      this.#template = typeof source === "string" ? new Template(source) : undefined;
    } catch (error) {
      throw new MoaError("no-tokenizer", `the bundle's tokenizer cannot be read: ${String(error)}`, { cause: error });
    }
  }

  /** Every token's bytes, for grammars; made on the first call. @internal */
  vocabulary(): TokenTable {
    return (this.#vocabulary ??= tokenTable(this.#model));
  }

  encode(text: string, addSpecialTokens: boolean): number[] {
    // The library's answer to the empty string is not an empty list for every model.
    if (text === "" && !addSpecialTokens) return [];
    return this.#tokenizer.encode(text, { add_special_tokens: addSpecialTokens }).ids;
  }

  decode(ids: readonly number[], skipSpecialTokens: boolean): string {
    if (ids.length === 0) return "";
    return this.#tokenizer.decode([...ids], {
      skip_special_tokens: skipSpecialTokens,
      clean_up_tokenization_spaces: false,
    });
  }

  /**
   * The conversation as the model was trained to read it, up to where the answer begins; `variables` are for the
   * template.
   */
  render(messages: readonly ChatMessage[], variables: Readonly<Record<string, unknown>> = {}): string {
    if (!this.#template) {
      throw new MoaError("no-tokenizer", "the bundle has no chat template", { hint: "use generate() with ids of your own" });
    }
    try {
      return this.#template.render({
        ...this.#specialTokens,
        add_generation_prompt: true,
        ...variables,
        messages,
      });
    } catch (error) {
      throw new MoaError("bad-argument", `the chat template refuses these messages: ${String(error)}`, { cause: error });
    }
  }
}

/** Decodes a growing list of ids: gives each piece of text once, never half a character. */
export class StreamDecoder {
  readonly #codec: TextCodec;
  readonly #ids: number[] = [];
  /** Ids before `#start` only give context to the first ones after it; all before `#read` have been given. */
  #start = 0;
  #read = 0;

  constructor(codec: TextCodec) {
    this.#codec = codec;
  }

  push(ids: readonly number[]): string {
    this.#ids.push(...ids);
    const given = this.#codec.decode(this.#ids.slice(this.#start, this.#read), true);
    const all = this.#codec.decode(this.#ids.slice(this.#start), true);
    // U+FFFD at the end: the bytes of a character are not complete yet.
    if (all.length <= given.length || all.endsWith("\u{fffd}")) return "";
    this.#start = this.#read;
    this.#read = this.#ids.length;
    return all.slice(given.length);
  }

  /** What is left at the end, incomplete characters included. */
  flush(): string {
    const given = this.#codec.decode(this.#ids.slice(this.#start, this.#read), true);
    const all = this.#codec.decode(this.#ids.slice(this.#start), true);
    this.#start = this.#read = this.#ids.length;
    return all.slice(given.length);
  }
}
