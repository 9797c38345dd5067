import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { MOA_ERROR_CODES, MoaError } from "../dist/errors.js";

test("anything thrown becomes a typed error; the engine's codes are kept, unknown ones are not", () => {
  const native = Object.assign(new Error("the device is gone"), { name: "MoaError", code: "device-lost", hint: "reload" });
  assert.deepEqual(MoaError.from(native).fields(), { code: "device-lost", message: "the device is gone", hint: "reload" });
  assert.equal(MoaError.from(Object.assign(new Error("x"), { code: "E_STRANGE" })).code, "internal");
  assert.equal(MoaError.from(new DOMException("stop", "AbortError")).code, "aborted");
  assert.equal(MoaError.from("text").message, "text");
  const typed = new MoaError("limits", "too small");
  assert.equal(MoaError.from(typed), typed);
});

test("the README lists every code, and no other", () => {
  const readme = readFileSync(new URL("../README.md", import.meta.url), "utf8");
  const paragraph = readme.slice(readme.indexOf("**Errors**"), readme.indexOf("## Serving it"));
  const listed = [...paragraph.slice(paragraph.indexOf(":")).matchAll(/`([a-z-]+)`/g)].map((match) => match[1]);
  assert.deepEqual(listed.sort(), [...MOA_ERROR_CODES].sort());
});
