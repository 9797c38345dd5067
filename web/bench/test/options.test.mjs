// What the bench takes from its command line, what of it a model has room for, and who is left out. No browser.

import assert from "node:assert/strict";
import test from "node:test";

import { CONTENDERS, choose } from "../contenders.mjs";
import { fit, parse, plansOf } from "../options.mjs";

const NEEDED = ["--bundle", "b", "--out", "o"];

test("without options it is the protocol of moa-run bench", () => {
  const { help, options } = parse(NEEDED);
  assert.equal(help, false);
  assert.deepEqual(options.prompts, [512, 4096]);
  assert.deepEqual(options.depths, [0, 4096, "max"]);
  assert.deepEqual([options.tokens, options.repetitions, options.kernels], [128, 5, "auto"]);
  const fitted = fit(options, { max_context: 8192 });
  assert.deepEqual(fitted.depths, [0, 4096, 8000]);
  assert.equal(fitted.contextLength, 8192);
});

test("what does not fit is left out, and max is the last depth that does", () => {
  const { options } = parse(NEEDED);
  const fitted = fit(options, { max_context: 2048 });
  assert.deepEqual([fitted.prompts, fitted.depths, fitted.contextLength], [[512], [0, 1856], 2048]);
  assert.throws(() => fit(options, { max_context: 128 }), /no room for 128 tokens/);
});

test("a depth of 0 is a prompt of one token, and every token of an answer has room", () => {
  const { options } = parse([...NEEDED, "--prompt", "1", "--depths", "0", "--tokens", "64"]);
  assert.equal(fit(options, { max_context: 8192 }).contextLength, 192);
});

test("the last of an option that is given twice counts", () => {
  assert.deepEqual(parse([...NEEDED, "--depths", "0,2048", "--depths", "0,64"]).options.depths, [0, 64]);
});

test("nonsense is refused by name", () => {
  for (const [option, value] of [["prompt", "0"], ["prompt", "512,"], ["depths", "deep"], ["depths", "-1"], ["tokens", "1.5"], ["repetitions", "x"]]) {
    assert.throws(() => parse([...NEEDED, `--${option}=${value}`]), new RegExp(`--${option} must be`), `${option} ${value}`);
  }
  assert.throws(() => parse([...NEEDED, "--nope"]));
  assert.equal(parse(["--bundle", "b"]).help, true);
});

test("the dense plan is always there, the bundle's own beside it unless others are named", () => {
  assert.deepEqual(plansOf([], { default_plan: "moa-50" }), ["dense", "moa-50"]);
  assert.deepEqual(plansOf([], { default_plan: "dense" }), ["dense"]);
  assert.deepEqual(plansOf(["moa-25", "moa-50"], { default_plan: "moa-50" }), ["dense", "moa-25", "moa-50"]);
  assert.deepEqual(plansOf(["dense"], { default_plan: "moa-50" }), ["dense"]);
});

test("who lacks something is left out with the reason, and never in silence", () => {
  const options = { contextLength: 1024, threads: 2, kernels: "auto" };
  const { rows, leftOut } = choose(undefined, { plans: ["dense", "moa-50"] }, options);
  assert.deepEqual(rows.map(({ label }) => label), ["moa, dense", "moa, plan moa-50"]);
  assert.deepEqual(rows.map(({ load }) => [load.plan, load.uniform]), [["dense", false], ["moa-50", false]]);
  assert.deepEqual(leftOut.map(({ name }) => name), CONTENDERS.map(({ name }) => name).filter((name) => name !== "moa"));
  assert.match(leftOut.find(({ name }) => name === "transformers-webgpu").why, /--onnx.*export_onnx\.py/);
  const uniform = choose(["moa"], { plans: ["uniform:moa-50"] }, options).rows;
  assert.deepEqual(uniform.map(({ label, load }) => [label, load.plan, load.uniform]), [["moa, one window in the bytes of moa-50", "moa-50", true]]);
  const some = choose(["moa", "wllama-cpu"], { plans: ["dense"], gguf: "model.gguf" }, options);
  assert.deepEqual([some.rows.length, some.leftOut], [2, []]);
  assert.throws(() => choose(["webllm"], { plans: ["dense"] }, options), /no contender is called/);
});
