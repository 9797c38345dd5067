// The real grammar module, on a vocabulary of single bytes and a few longer tokens.

import assert from "node:assert/strict";
import { test } from "node:test";

import { Grammars } from "../dist/grammar.js";
import { tokenTable } from "../dist/vocabulary.js";

const encoder = new TextEncoder();
/** Bytes 0 to 255, then these; the last two end an answer. */
const LONGER = ['{"', '": ', "true", '"}', "Ġ"];
const words = [...Array.from({ length: 256 }, (_, byte) => Uint8Array.of(byte)), ...LONGER.map((text) => encoder.encode(text))];
const ends = [words.length, words.length + 1];
const vocabulary = {
  bytes: Uint8Array.from(words.flatMap((word) => [...word])),
  lengths: Uint32Array.from([...words.map(({ length }) => length), 0, 0]),
};
const size = vocabulary.lengths.length;

/** The ids that may come next. */
function allowed(grammar) {
  const logits = new Float32Array(size + 3).fill(1);
  grammar.mask(logits);
  return [...logits.keys()].filter((id) => logits[id] === 1);
}

const grammars = new Grammars(undefined);
const open = (schema, to = ends) => grammars.grammar({ schema: JSON.stringify(schema), vocabulary }, to);
const layout = { "x-guidance": { whitespace_flexible: false, item_separator: ", ", key_separator: ": " } };

test("what follows the schema passes, token by token, and only an end comes after it", async () => {
  const grammar = await open({ ...layout, type: "object", properties: { ok: { type: "boolean" } }, required: ["ok"], additionalProperties: false });
  const first = allowed(grammar);
  assert.deepEqual(first, ["{".charCodeAt(0), 256], "an opening brace, alone or with its quote");
  for (const id of [256, ..."ok".split("").map((letter) => letter.charCodeAt(0)), 257, 258, "}".charCodeAt(0)]) {
    assert.ok(allowed(grammar).includes(id), `token ${id}`);
    grammar.accept(id);
  }
  assert.deepEqual(allowed(grammar), ends, "every token that ends an answer");
  grammar.accept(ends[1]);
  grammar.free();
});

test("several answers from one vocabulary; numbers, choices and references within the schema", async () => {
  for (const [schema, text, not] of [
    [{ enum: ["red", "green"] }, '"green"', '"blue"'],
    [{ type: "integer", minimum: 10, maximum: 12 }, "11", "13"],
    [{ $ref: "#/$defs/pair", $defs: { pair: { type: "array", items: { type: "integer" }, minItems: 2, maxItems: 2 } } }, "[1, 2]", "[1]"],
    [{ type: "string", pattern: "^a+$" }, '"aa"', '"ab"'],
  ]) {
    const passes = async (text) => {
      const grammar = await open({ ...layout, ...schema });
      for (const byte of encoder.encode(text)) {
        if (!allowed(grammar).includes(byte)) return false;
        grammar.accept(byte);
      }
      return allowed(grammar).includes(ends[0]);
    };
    assert.ok(await passes(text), text);
    assert.ok(!(await passes(not)), not);
  }
});

test("a schema that cannot be used, a model without an end, are typed errors", async () => {
  await assert.rejects(open({ type: "nonsense" }), (error) => error.code === "bad-argument" && /nonsense/.test(error.message));
  await assert.rejects(open({}, []), { code: "unsupported-option" });
  await assert.rejects(new Grammars("file:///nothing.wasm").grammar({ schema: "{}", vocabulary }, ends), { code: "network" });
});

test("a tokenizer's tokens as bytes: of byte-level vocabularies, and of those that write a mark for a space", () => {
  const texts = ({ bytes, lengths }) => {
    let at = 0;
    return [...lengths].map((length) => new TextDecoder().decode(bytes.subarray(at, (at += length))));
  };
  const level = tokenTable({
    model: { vocab: { "Ġthe": 0, "Ċ": 1, "Ã©": 2 } }, decoder: { type: "ByteLevel" },
    added_tokens: [{ id: 3, content: "<|end|>", special: true }, { id: 5, content: "<b>", special: false }],
  });
  assert.deepEqual(texts(level), [" the", "\n", "é", "", "", "<b>"]);
  const spaced = tokenTable({ model: { vocab: [["▁the", -1], ["<0x0A>", -2], ["é", -3]] }, decoder: { type: "Sequence", decoders: [{ type: "Replace" }] } });
  assert.deepEqual(texts(spaced), [" the", "\n", "é"]);
});
