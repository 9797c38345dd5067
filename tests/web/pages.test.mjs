// The pages beside the chat: find, plan, depth and the way in. Everything but the demo's one real question runs on a
// random model of three layers, whose answers mean nothing.

import assert from "node:assert/strict";
import { rmSync, symlinkSync } from "node:fs";
import { join } from "node:path";
import { after, before, test } from "node:test";

import { fitsAndIsNamed, launch, openPage, required } from "./browser.mjs";
import { start } from "./harness.mjs";
import { tinyBundle } from "./tiny.mjs";

let folder, tiny, real, browser;

before(async () => {
  folder = tinyBundle({ text: true });
  symlinkSync(join(required("MOA_BUNDLE"), "web"), join(folder, "bundle/web"));
  tiny = await start(join(folder, "bundle"));
  real = await start();
  browser = await launch();
}, { timeout: 120_000 });
after(async () => {
  await browser?.close();
  tiny?.close();
  real?.close();
  if (folder) rmSync(folder, { recursive: true });
});

const open = (server, path, options) => openPage(browser, `${server.url}/web/${path}`, { viewport: { width: 1280, height: 860 }, ...options });

test("find: three plans, equal bytes, no request after loading, and the count goes on", { timeout: 120_000 }, async () => {
  const page = await open(tiny, "find/?context=768");
  await page.waitForSelector("#run:not([disabled])", { timeout: 60_000 });
  const asked = tiny.requests.length;
  for (const round of [1, 2]) {
    await page.click("#run");
    await page.waitForSelector("#run:not([hidden])", { timeout: 60_000 });
    const columns = await page.locator(".column").evaluateAll((columns) => columns.map((column) => ({
      title: column.querySelector("h2").textContent,
      bytes: column.querySelector("dd b").textContent,
      hits: [...column.querySelectorAll("dd b")].at(-1).textContent,
      verdict: column.querySelector(".verdict").textContent,
      answer: column.querySelector(".text").textContent,
      reach: column.querySelector(".reach").textContent,
    })));
    assert.deepEqual(columns.map(({ title }) => title), ["Dense", "Uniform window", "MoA"]);
    const [dense, uniform, moa] = columns;
    assert.equal(uniform.bytes, moa.bytes, "uniform has MoA's bytes");
    assert.notEqual(dense.bytes, moa.bytes);
    const number = /\d{5}/.exec(await page.textContent("#snippet mark"))[0];
    for (const { hits, verdict, answer, reach } of columns) {
      assert.match(hits, new RegExp(`^[0-${round}] of ${round}$`));
      assert.equal(verdict, answer.includes(number) ? "✓ right" : "✗ wrong");
      assert.match(reach, /^\d+ of \d+ heads still see it$/);
    }
    assert.match(dense.reach, /^(\d+) of \1 /);
  }
  assert.equal(await page.textContent("#requests"), "0");
  assert.deepEqual(tiny.requests.slice(asked).filter((path) => path !== "/web/offline.js"), [], "and so the server says");
  assert.match(await page.textContent("#arithmetic"), /112 KiB a token.*32,768 tokens.*3\.50 GiB dense/);

  // What is counted can be counted.
  await page.evaluate(() => fetch("/manifest.json"));
  await page.waitForFunction(() => document.getElementById("requests").textContent === "1");
  assert.deepEqual(page.problems, []);
  await page.close();
});

test("find: the dense model finds a number in a real passage", { timeout: 300_000 }, async () => {
  const page = await open(real, "find/?context=384");
  // The same passage and place every time.
  await page.evaluate(() => (Math.random = () => 0.37));
  await page.waitForSelector("#run:not([disabled])", { timeout: 120_000 });
  await page.click("#run");
  await page.waitForSelector("#run:not([hidden])", { timeout: 200_000 });
  console.log((await page.locator(".column .text").allTextContents()).join(" | "));
  assert.equal(await page.locator(".column .verdict").first().textContent(), "✓ right");
  assert.deepEqual(page.problems, []);
  await page.close();
});

test("plan: every head can be looked through, rings fill while the book is read, and the costs are the manifest's", { timeout: 60_000 }, async () => {
  const page = await open(tiny, "plan/?context=512");
  await page.waitForSelector("#viewer:not([hidden])", { timeout: 60_000 });
  const { layers, kv_heads } = tiny.manifest.model;
  assert.equal(await page.locator("#spans .cell").count(), layers * kv_heads);
  await page.hover("#spans .cell >> nth=0");
  const first = await page.textContent("#head");
  assert.match(first, /^Layer 1, KV head 1: 16 tokens: the first 8 and the newest 8$/);
  // What it sees is the sink and the window, and together with what is gone the whole text.
  const parts = await page.evaluate(() => ["sink", "gone", "window"].map((name) => document.querySelector(`#text .${name}`).textContent.length));
  assert.deepEqual([parts[0], parts[2]], [8, 8]);
  await page.focus("#spans");
  await page.keyboard.press("ArrowDown");
  assert.match(await page.textContent("#head"), /^Layer 1, KV head 2: 32 tokens/);

  const total = Number(await page.textContent("#of"));
  const positions = await page.evaluate(async () => {
    const seen = [];
    const position = document.getElementById("position");
    new MutationObserver(() => seen.push(Number(position.textContent))).observe(position, { childList: true, characterData: true, subtree: true });
    document.getElementById("read").click();
    await new Promise((resolve) => new MutationObserver((_, all) => (all.disconnect(), resolve())).observe(document.getElementById("stop"), { attributes: true, attributeFilter: ["hidden"] }));
    await new Promise((resolve) => setTimeout(resolve, 0));
    while (document.getElementById("read").hidden) await new Promise((resolve) => setTimeout(resolve, 20));
    return seen;
  });
  assert.deepEqual([positions[0], positions.at(-1)], [0, total]);
  assert.ok(positions.length > 3, "chunk by chunk");
  assert.equal(await page.textContent("#full"), await page.textContent("#rings"), "every ring of this plan is full at the end");

  const [plan] = tiny.manifest.plans;
  assert.equal(await page.locator("#costs tbody tr").count(), plan.at.length);
  assert.equal(await page.locator("#costs tbody tr td >> nth=2").textContent(), `${(100 * plan.at[0].kv_density).toFixed(1)}%`);
  assert.deepEqual(page.problems, []);
  await page.close();
});

test("depth: both engines are measured at every depth, on the chart and in the table; Stop stops", { timeout: 120_000 }, async () => {
  const page = await open(tiny, "depth/?context=512");
  await page.waitForSelector("#run:not([disabled])", { timeout: 60_000 });
  await page.click("#run");
  await page.waitForFunction(() => document.getElementById("status").textContent === "Done", undefined, { timeout: 90_000 });
  const rows = await page.locator("#table tbody tr").allInnerTexts();
  assert.deepEqual(rows.map((row) => row.split("\t")[0]), ["64", "256", "512"]);
  for (const row of rows) assert.match(row, /^\d+\t[\d.]+\t[\d.]+\t−?[\d.]+$/);
  assert.equal(await page.locator("#chart circle").count(), 6);
  assert.match(await page.textContent("#chart title"), /^at 64 tokens dense [\d.]+ ms, plan [\d.]+ ms;/);
  await page.click("#run");
  await page.keyboard.press("Escape");
  await page.waitForFunction(() => document.getElementById("status").textContent === "Stopped", undefined, { timeout: 20_000 });
  assert.deepEqual(page.problems, []);
  await page.close();
});

test("links keep the model; every page fits a phone, in the dark, and everything has a name", { timeout: 120_000 }, async () => {
  const page = await open(tiny, "?context=512", { viewport: { width: 360, height: 700 }, colorScheme: "dark" });
  for (const name of ["find", "plan", "depth", ""]) {
    if (name === "") await page.click(".brand");
    else await page.click(`.top nav >> text=${name[0].toUpperCase()}${name.slice(1)}`);
    await page.waitForURL((url) => url.pathname === `/web/${name}${name === "" ? "" : "/"}` && url.search === "?context=512");
    if (name !== "") await page.waitForSelector("#loading", { state: "hidden", timeout: 60_000 });
    await fitsAndIsNamed(page, name);
    assert.equal(await page.locator("h1").count(), 1);
    if (name !== "") assert.equal(await page.locator("[aria-current=page]").count(), 1);
  }
  assert.deepEqual(page.problems, []);
  await page.close();
});
