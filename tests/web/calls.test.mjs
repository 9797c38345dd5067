// Calls and inputs of the package that no other test in this folder makes, in real Chromium on the random model of three
// layers with a tokenizer of single bytes.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { readFileSync, readdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import { after, before, test } from "node:test";

import { launch } from "./browser.mjs";
import { openHarness, start, weightBytes } from "./harness.mjs";
import { tinyBundle } from "./tiny.mjs";

let folder, server, browser, page;
before(async () => {
  folder = tinyBundle({ text: true });
  const bundle = join(folder, "bundle");
  execFileSync("tar", ["cf", join(folder, "bundle.tar"), "-C", bundle, "."]);
  server = await start(bundle, (request, response, path) => {
    if (path === "/bundle.tar") response.writeHead(200, { "content-type": "application/x-tar" }).end(readFileSync(join(folder, "bundle.tar")));
    else if (path === "/own-worker.js") {
      response.writeHead(200, { "content-type": "text/javascript" });
      response.end('import { attachWorkerHandler } from "/harness/handler.js"; attachWorkerHandler();');
    } else return false;
    return true;
  });
  browser = await launch();
  page = await openHarness(browser, server);
  await page.evaluate(async (model) => {
    globalThis.model = model;
    globalThis.engine = await moa.createEngine({ model, contextLength: 512 });
    globalThis.prompt = "Call me Ishmael.";
    globalThis.expected = (await engine.completions.create({ prompt, temperature: 0, max_tokens: 12 })).choices[0].text;
    /** What a greedy engine says, and that it is gone afterwards. */
    globalThis.says = async (options) => {
      const made = await moa.createEngine({ contextLength: 512, ...options });
      const { text } = (await made.completions.create({ prompt, temperature: 0, max_tokens: 12 })).choices[0];
      await made[Symbol.asyncDispose]();
      const code = await made.logits([1]).catch((error) => error.code);
      return { text, code, report: made.loadReport };
    };
  }, `${server.url}/manifest.json`);
}, { timeout: 120_000 });
after(async () => {
  await browser?.close();
  server?.close();
  if (folder) rmSync(folder, { recursive: true });
});

test("raw text whole, streamed, from ids, with probabilities and stop texts", { timeout: 60_000 }, async () => {
  const result = await page.evaluate(async () => {
    const ids = engine.tokenize(prompt);
    const whole = await engine.completions.create({ prompt: ids, temperature: 0, max_tokens: 12, logprobs: 2 });
    let streamed = "";
    let usage;
    for await (const piece of await engine.completions.create({ prompt, temperature: 0, max_tokens: 12, stream: true, stream_options: { include_usage: true } })) {
      streamed += piece.choices[0]?.text ?? "";
      usage = piece.usage ?? usage;
    }
    const stop = [...expected].at(-3);
    const stopped = await engine.completions.create({ prompt, temperature: 0, max_tokens: 12, stop });
    return { ids, back: engine.detokenize(ids), whole, streamed, usage, stop, stopped, expected };
  });
  const { whole, expected, stop } = result;
  assert.equal(result.back, "Call me Ishmael.");
  assert.equal(whole.object, "text_completion");
  assert.equal(whole.choices[0].text, expected);
  assert.equal(result.streamed, expected);
  assert.deepEqual([result.usage.prompt_tokens, result.usage.completion_tokens], [result.ids.length, 12]);
  const { tokens, token_logprobs, top_logprobs } = whole.choices[0].logprobs;
  assert.deepEqual([tokens.length, token_logprobs.length, top_logprobs.length], [12, 12, 12]);
  assert.ok(token_logprobs.every((logprob, at) => logprob <= 0 && logprob === Math.max(...Object.values(top_logprobs[at]))), "greedy takes the likeliest");
  assert.equal(result.stopped.choices[0].text, expected.slice(0, expected.indexOf(stop)));
  assert.equal(result.stopped.choices[0].finish_reason, "stop");
});

test("a chat's probabilities, and the signal of the request itself", { timeout: 60_000 }, async () => {
  const result = await page.evaluate(async () => {
    const messages = [{ role: "user", content: [{ type: "text", text: "Hi" }] }];
    const { choices } = await engine.chat.completions.create({ messages, temperature: 0, max_completion_tokens: 4, logprobs: true, top_logprobs: 3, chat_template_kwargs: { unused: 1 } });
    const code = (promise) => promise.then(() => "none", (error) => error.code);
    const streamed = async (request, options) => {
      for await (const _ of await engine.chat.completions.create({ messages, stream: true, max_tokens: 300, ...request }, options));
    };
    const [own, second] = [new AbortController(), new AbortController()];
    const aborted = [code(streamed({ signal: own.signal })), code(streamed({}, { signal: second.signal }))];
    setTimeout(() => { own.abort(); second.abort(); }, 20);
    return { content: choices[0].logprobs.content, aborted: await Promise.all(aborted), n: await code(engine.chat.completions.create({ messages, n: 2 })) };
  });
  assert.equal(result.content.length, 4);
  for (const { logprob, top_logprobs } of result.content) {
    assert.equal(top_logprobs.length, 3);
    assert.equal(top_logprobs[0].logprob, logprob);
  }
  assert.deepEqual([result.aborted, result.n], [["aborted", "aborted"], "unsupported-option"]);
});

test("a tar file, a folder of the origin's, and the Cache API give the same model", { timeout: 60_000 }, async () => {
  const names = readdirSync(join(folder, "bundle"));
  const result = await page.evaluate(async (names) => {
    const archive = await (await fetch("/bundle.tar")).blob();
    const directory = await (await navigator.storage.getDirectory()).getDirectoryHandle("picked", { create: true });
    for (const name of names) {
      const file = await (await directory.getFileHandle(name, { create: true })).createWritable();
      await file.write(await (await fetch(`/${name}`)).blob());
      await file.close();
    }
    const [tar, picked] = [await says({ model: archive }), await says({ model: directory })];
    const [first, second] = [await says({ model, cache: "cache-api" }), await says({ model, cache: "cache-api" })];
    const noTar = await moa.createEngine({ model: new Blob(["x".repeat(2000)]) }).catch((error) => error.code);
    return { tar, picked, first, second, noTar, expected };
  }, names);
  const bytes = weightBytes(server.manifest);
  for (const { text, code } of [result.tar, result.picked, result.first, result.second]) assert.deepEqual([text, code], [result.expected, "unloaded"]);
  assert.deepEqual([result.first.report.fetchedBytes, result.second.report.fetchedBytes, result.second.report.cachedBytes], [bytes, 0, bytes]);
  assert.equal(result.noTar, "bad-manifest");
});

test("a worker of the page's own, chunks and limits of its choice, change no token", { timeout: 60_000 }, async () => {
  const result = await page.evaluate(async () => [
    await says({ model, worker: new Worker("/own-worker.js", { type: "module" }) }),
    await says({ model, prefillChunk: 5, defaultLimits: true, powerPreference: "low-power", turnSnapshotBytes: 0 }),
    await says({ model, worker: false, wasmUrl: "/harness/moa_runtime_web_bg.wasm" }),
    { text: expected, code: "unloaded" },
  ].map(({ text, code }) => [text, code]));
  for (const one of result) assert.deepEqual(one, result.at(-1));
});
