// The package as a stranger gets it: packed, installed into a Vite project and beside a plain page, run in Node.js; and
// the two ways in from other libraries.

import assert from "node:assert/strict";
import { execFile, execFileSync } from "node:child_process";
import { cpSync, existsSync, mkdirSync, readFileSync, readdirSync, rmSync, symlinkSync } from "node:fs";
import { dirname, join } from "node:path";
import { after, before, test } from "node:test";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";

import { build } from "vite";

import { serve } from "../../web/serve.mjs";
import { launch, openPage, required } from "./browser.mjs";
import { tinyBundle } from "./tiny.mjs";

const root = fileURLToPath(new URL("../../", import.meta.url));
let folder, server, url, browser;

before(async () => {
  folder = tinyBundle({ text: true });
  const modules = join(folder, "node_modules");
  mkdirSync(join(modules, "@huggingface"), { recursive: true });
  // The package as npm packs it, beside its dependencies.
  execFileSync("npm", ["pack", "--silent", "--pack-destination", folder], { cwd: join(root, "web/moa-runtime") });
  const { version, dependencies } = JSON.parse(readFileSync(join(root, "web/moa-runtime/package.json"), "utf8"));
  execFileSync("tar", ["xzf", join(folder, `moa-runtime-${version}.tgz`), "-C", folder]);
  cpSync(join(folder, "package"), join(modules, "moa-runtime"), { recursive: true });
  for (const name of [...Object.keys(dependencies), "vite", "webgpu", "debug", "ms"]) {
    assert.ok(existsSync(join(root, "node_modules", name)));
    mkdirSync(dirname(join(modules, name)), { recursive: true });
    symlinkSync(join(root, "node_modules", name), join(modules, name));
  }
  for (const name of ["plain", "vite", "node"]) {
    cpSync(join(root, "web/examples", name), join(folder, name), { recursive: true });
    if (name !== "node") symlinkSync(join(folder, "bundle"), join(folder, name, "bundle"));
  }
  symlinkSync(modules, join(folder, "plain/node_modules"));
  server = await serve(folder);
  url = `http://localhost:${server.address().port}`;
  browser = await launch();
}, { timeout: 120_000 });
after(async () => {
  await browser?.close();
  server?.close();
  if (folder) rmSync(folder, { recursive: true });
});

/** Waits for an example to be done and returns what it said. */
async function answerOf(address) {
  const page = await openPage(browser, address);
  await page.waitForFunction(() => /done$/.test(document.getElementById("progress").textContent), undefined, { timeout: 60_000 });
  const text = await page.textContent("#answer");
  assert.deepEqual(page.problems, []);
  await page.close();
  return text;
}

test("a plain page, no bundler", { timeout: 60_000 }, async () => {
  assert.ok((await answerOf(`${url}/plain/`)).length > 0);
});

test("a Vite project", { timeout: 90_000 }, async () => {
  await build({ root: join(folder, "vite"), configFile: join(folder, "vite/vite.config.js"), base: "./", logLevel: "warn", build: { outDir: "dist", copyPublicDir: false } });
  symlinkSync(join(folder, "bundle"), join(folder, "vite/dist/bundle"));
  const assets = readdirSync(join(folder, "vite/dist/assets")).filter((name) => name.endsWith(".wasm"));
  assert.equal(assets.length, 2, "the engine, and what response_format needs, each a file of its own");
  assert.ok((await answerOf(`${url}/vite/dist/`)).length > 0);
});

test("Node.js gives the browser's tokens, by the chat calls, WebLLM's calls and the AI SDK's", { timeout: 120_000 }, async () => {
  const page = await openPage(browser, `${url}/plain/?model=/bundle/`);
  await page.waitForFunction(() => /done$/.test(document.getElementById("progress").textContent), undefined, { timeout: 60_000 });
  const texts = await page.evaluate(async () => {
    const messages = [{ role: "user", content: "Why is the sky blue?" }];
    const options = { temperature: 0, max_tokens: 12 };

    const { createEngine } = await import("moa-runtime");
    const engine = await createEngine({ model: "/bundle/", contextLength: 1024 });
    const own = (await engine.chat.completions.create({ messages, ...options })).choices[0].message.content;

    // The module for JSON comes from where the package has it.
    const format = { type: "json_schema", json_schema: { schema: { enum: ["blue", "red"] } } };
    const json = (await engine.chat.completions.create({ messages, ...options, response_format: format })).choices[0].message.content;

    const { moa } = await import("./node_modules/moa-runtime/dist/ai-sdk.js");
    const prompt = [{ role: "user", content: [{ type: "text", text: messages[0].content }] }];
    let sdk = "";
    for await (const part of (await moa(engine).doStream({ prompt, temperature: 0, maxOutputTokens: 12 })).stream) sdk += part.delta ?? "";
    await engine.unload();

    const { CreateMLCEngine } = await import("./node_modules/moa-runtime/dist/webllm.js");
    const reports = [];
    const llm = await CreateMLCEngine("/bundle/", { initProgressCallback: (report) => reports.push(report) }, { context_window_size: 1024 });
    let webllm = "";
    let usage;
    for await (const chunk of await llm.chat.completions.create({ messages, ...options, stream: true, stream_options: { include_usage: true } })) {
      webllm += chunk.choices[0]?.delta.content ?? "";
      usage = chunk.usage ?? usage;
    }
    const message = await llm.getMessage();
    // An interrupted answer ends, and says so.
    let reason;
    for await (const chunk of await llm.chat.completions.create({ messages, temperature: 0, stream: true, max_tokens: 900 })) {
      if (chunk.choices[0]?.delta.content) llm.interruptGenerate();
      reason = chunk.choices[0]?.finish_reason ?? reason;
    }
    await llm.unload();
    const dead = await llm.chat.completions.create({ messages }).catch((error) => error.code);
    return { own, json, sdk, webllm, message, reason, dead, usage, last: reports.at(-1) };
  });
  assert.deepEqual(page.problems, []);
  await page.close();
  assert.ok(texts.own.length > 0);
  assert.ok(["blue", "red"].includes(JSON.parse(texts.json)), texts.json);
  assert.equal(texts.sdk, texts.own);
  assert.equal(texts.webllm, texts.own);
  assert.equal(texts.message, texts.own);
  assert.deepEqual([texts.reason, texts.dead], ["abort", "unloaded"]);
  assert.ok(texts.usage.extra.decode_tokens_per_s > 0);
  assert.deepEqual([texts.last.progress, texts.last.text], [1, "Ready"]);

  const icd = join(dirname(required("LVP_SO")), "lvp_icd.json");
  const { stdout } = await promisify(execFile)(process.execPath, ["chat.mjs", join(folder, "bundle"), "Why is the sky blue?", "12"], {
    cwd: join(folder, "node"), env: { ...process.env, VK_ICD_FILENAMES: icd },
  });
  assert.equal(stdout, `${texts.own}\n`);
});
