// The browser's tokenizer and chat template against the compiler's, on a thousand strings.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { after, before, test } from "node:test";

import { launch, openPage, required } from "./browser.mjs";
import { start } from "./harness.mjs";

const COUNT = 1000;

/** Strings that tokenizers get wrong, then random mixtures of their parts; the same in every run. */
function strings() {
  const parts = [
    "Hello", " world", "the", " The", "THE", "isn't", "we'll", "I'VE", "naïve", "Straße", "e\u0301", "ﬁ", "ǅ",
    "日本語", "中文字符", "한국어", "العربية", "עברית", "ไทย", "हिन्दी", "🙂", "👩‍👩‍👧‍👦", "🇫🇷", "\u200b", "\u200d", "\ufeff",
    "0", "42", "3.14159", "1,000,000", "２０２６", "½", "x²", " ", "  ", "   \t", "\n", "\n\n", "\r\n", "\t", "\u00a0", "\u3000",
    "!", "?!", "...", "—", "“quoted”", "(a)", "[b]", "{c}", "<d>", "a_b", "a-b", "a/b", "C:\\x", "#!/bin/sh", "$x", "%", "^",
    "for (let i = 0; i < 10; i++) {", "def f(x):\n    return x\n", "http://example.org/?q=1&r=2", "user@example.org",
    "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|im_start", "|>", "<repo_name>", "<file_sep>", "\u0000", "\u0007", "\ud7ff", "\ue000", "\u{10ffff}",
  ];
  let state = 12345;
  const random = (below) => {
    state = (Math.imul(state, 1103515245) + 12345) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
  const all = ["", ...parts, ...parts.map((part) => ` ${part} `)];
  while (all.length < COUNT) {
    const pieces = Array.from({ length: 1 + random(12) }, () =>
      random(8) === 0 ? String.fromCodePoint(0x20 + random(0xd000)) : parts[random(parts.length)]);
    all.push(pieces.join(random(3) === 0 ? " " : ""));
  }
  return all;
}

let server, browser, page;
before(async () => {
  server = await start();
  browser = await launch();
  page = await openPage(browser, `${server.url}/harness/`);
  await page.waitForFunction(() => globalThis.moa);
});
after(async () => {
  await browser?.close();
  server?.close();
});

function native(input, ...flags) {
  const stdout = execFileSync(required("MOA_COMPILE"), ["tokenize", required("MOA_BUNDLE"), "--json", ...flags], {
    input: JSON.stringify(input), maxBuffer: 1 << 28,
  });
  return JSON.parse(stdout);
}

/** Names the first difference; a diff of a thousand lists helps nobody. */
function assertSame(what, input, got, expected) {
  assert.equal(got.length, expected.length);
  const wrong = input.map((_, i) => i).filter((i) => JSON.stringify(got[i]) !== JSON.stringify(expected[i]));
  assert.equal(wrong.length, 0, `${what} differs for ${wrong.length} of ${input.length} strings, first ` +
    `${JSON.stringify(input[wrong[0]])}: browser ${JSON.stringify(got[wrong[0]])}, native ${JSON.stringify(expected[wrong[0]])}`);
}

const inBrowser = (input, chat) => page.evaluate(async ([input, chat]) => {
  const text = (file) => fetch(`/${file}`).then((response) => response.text());
  const codec = new moa.TextCodec(await text("tokenizer.json"), await text("tokenizer_config.json"));
  const rendered = input.map((content) => (chat ? codec.render([{ role: "user", content }]) : content));
  const ids = rendered.map((one) => codec.encode(one, !chat));
  return { rendered, ids, decoded: ids.map((one) => codec.decode(one, true)) };
}, [input, chat]);

test("ids and texts are equal on a thousand strings", { timeout: 120_000 }, async () => {
  const input = strings();
  assert.equal(new Set(input).size > 900, true, "the strings differ");
  const expected = native(input);
  const got = await inBrowser(input, false);
  assertSame("ids", input, got.ids, expected.ids);
  assertSame("text", input, got.decoded, expected.decoded);
});

test("the chat template gives the same prompts", { timeout: 120_000 }, async () => {
  const input = strings();
  const expected = native(input, "--chat");
  const got = await inBrowser(input, true);
  assertSame("prompt", input, got.rendered, expected.rendered);
  assertSame("ids", input, got.ids, expected.ids);
});
