// The chat page as a person meets it.

import assert from "node:assert/strict";
import { mkdirSync } from "node:fs";
import { after, before, test } from "node:test";
import { fileURLToPath } from "node:url";

import { fitsAndIsNamed, launch, openPage } from "./browser.mjs";
import { start } from "./harness.mjs";

const pictures = fileURLToPath(new URL("../../target/e2e/", import.meta.url));
let server, browser;

before(async () => {
  mkdirSync(pictures, { recursive: true });
  server = await start();
  browser = await launch();
});
after(async () => {
  await browser?.close();
  server?.close();
});

test("one types and sees tokens stream; Stop stops; the conversation goes on", { timeout: 300_000 }, async () => {
  const page = await openPage(browser, `${server.url}/web/chat/?context=1024`, { viewport: { width: 1100, height: 800 } });
  const seen = new Set();
  await page.exposeFunction("seen", (text) => seen.add(text));
  await page.evaluate(() => new MutationObserver(() => seen(document.getElementById("loading-text").textContent))
    .observe(document.getElementById("loading"), { subtree: true, childList: true, characterData: true }));
  await page.waitForSelector("#welcome:not([hidden])", { timeout: 120_000 });
  assert.ok([...seen].some((text) => /^Loading weights: [\d.]+ of [\d.]+ MiB$/.test(text)), `progress in bytes: ${[...seen].slice(0, 5)}`);

  const { manifest } = server;
  const at = manifest.plans.find((plan) => plan.name === manifest.default_plan).at.find((figures) => figures.context === 1024);
  assert.equal(await page.inputValue("#plan"), manifest.default_plan);
  assert.equal(await page.textContent("#density"), `${(100 * at.kv_density).toFixed(1)}%`);
  assert.match(await page.textContent("#dense-bytes"), /^[\d.]+ MiB$/);
  assert.equal(await page.locator("#spans .cell").count(), manifest.model.layers * manifest.model.kv_heads);
  assert.ok(await page.isVisible("#spans"), "the plan is in sight");
  assert.match(await page.textContent("#model-name"), /^SmolLM2 135M( Instruct)? on /);

  const before = server.requests.length;
  await page.fill("#prompt", "Write a very long story about a whale.");
  await page.press("#prompt", "Enter");
  const answer = page.locator(".turn.assistant .text");
  const length = async () => ((await answer.last().textContent()) ?? "").length;
  await page.waitForFunction(() => document.querySelector(".turn.assistant .text")?.textContent.length > 3, undefined, { timeout: 120_000 });
  const early = await length();
  await page.waitForFunction((early) => document.querySelector(".turn.assistant .text").textContent.length > early, early, { timeout: 60_000 });
  await page.screenshot({ path: `${pictures}/chat-streaming.png` });
  await page.click("#stop");
  await page.waitForSelector("#send:not([hidden])");
  assert.equal(await page.locator(".turn.assistant .note").last().textContent(), "stopped");

  await page.click("#settings summary");
  await page.fill("#longest", "12");
  await page.fill("#prompt", "Say hello.");
  await page.click("#send");
  await page.waitForSelector("#stop:not([hidden])");
  await page.waitForFunction(() => /tokens, [\d.]+ per second/.test([...document.querySelectorAll(".turn.assistant .note")].at(-1)?.textContent ?? ""), undefined, { timeout: 200_000 });
  assert.ok((await length()) > 0);
  assert.match(await page.textContent("#speed"), /^\d+(\.\d)?$/);
  assert.notEqual(await page.textContent("#used"), "0");
  // The browser itself asks now and then whether the page's service worker has changed.
  const after = server.requests.slice(before).filter((path) => path !== "/web/offline.js");
  assert.deepEqual(after, [], "nothing is fetched after loading");
  await page.screenshot({ path: `${pictures}/chat-answered.png` });

  // Editing the first message begins another branch there; leaving off begins none.
  const turns = () => page.locator(".turn").count();
  assert.equal(await turns(), 4);
  await page.locator(".turn.user").first().hover();
  await page.locator(".turn.user button").first().click();
  assert.equal(await page.inputValue("#prompt"), "Write a very long story about a whale.");
  await page.press("#prompt", "Escape");
  assert.equal(await page.inputValue("#prompt"), "");
  await page.locator(".turn.user button").first().click();
  await page.fill("#prompt", "Say yes.");
  await page.press("#prompt", "Enter");
  await page.waitForSelector("#stop:not([hidden])");
  await page.click("#stop");
  await page.waitForSelector("#send:not([hidden])");
  assert.equal(await turns(), 2);
  await page.click("text=Try again");
  await page.waitForSelector("#stop:not([hidden])");
  await page.click("#stop");
  await page.waitForSelector("#send:not([hidden])");
  assert.equal(await turns(), 2, "another try takes the place of the answer");
  // Both branches are still there.
  assert.match(await page.locator(".turn.assistant .doings").textContent(), /2 of 2/);
  assert.match(await page.locator(".turn.user .doings").textContent(), /2 of 2/);
  await page.click(".turn.user >> [aria-label='The branch before']");
  assert.equal(await turns(), 4);
  assert.equal(await page.locator(".turn.user .text").first().textContent(), "Write a very long story about a whale.");
  await page.click(".turn.user >> [aria-label='The next branch']");
  assert.equal(await turns(), 2);

  // A long text that is pasted becomes a document, and goes with the message.
  await page.evaluate(() => {
    const clipboardData = new DataTransfer();
    clipboardData.setData("text/plain", "a long text ".repeat(150));
    document.getElementById("prompt").dispatchEvent(new ClipboardEvent("paste", { clipboardData, cancelable: true }));
  });
  assert.match(await page.textContent("#attachment-text"), /^Document, \d+ tokens$/);
  await page.waitForFunction(() => /^\d+ tokens; there is room for [\d,]+$/.test(document.getElementById("meter").textContent));
  await page.click("#detach");
  assert.ok(await page.isHidden("#attachment"));

  // This model is on the device by now, and is the one that runs.
  await page.click("#model-choice summary");
  assert.match(await page.textContent("#models [aria-current]"), /^SmolLM2 135M/);
  assert.match(await page.textContent("#models li"), /[\d.]+ MiB$/);

  // Another plan, on the same weights: the conversation stays.
  const requested = server.requests.length;
  await page.selectOption("#plan", "dense");
  await page.waitForFunction(() => document.getElementById("density").textContent === "100.0%", undefined, { timeout: 60_000 });
  assert.equal(new URL(page.url()).searchParams.get("plan"), "dense");
  assert.match(await page.getAttribute(".top nav a >> nth=0", "href") ?? "", /plan=dense/);
  await page.fill("#prompt", "And now?");
  await page.press("#prompt", "Enter");
  await page.waitForFunction(() => /tokens, [\d.]+ per second/.test([...document.querySelectorAll(".turn.assistant .note")].at(-1)?.textContent ?? ""), undefined, { timeout: 200_000 });
  assert.equal(await turns(), 4);
  // With the address the browser looks at the icon again.
  assert.deepEqual(server.requests.slice(requested).filter((path) => !path.startsWith("/web/")), [], "nothing of the model is fetched");

  await page.click("#clear");
  assert.equal(await page.locator(".turn").count(), 0);
  assert.ok(await page.isVisible("#welcome"));
  assert.deepEqual(page.problems, []);
  await page.close();
});

test("without WebGPU there is a sentence, and nothing is downloaded", async () => {
  const page = await openPage(browser, "about:blank", { viewport: { width: 390, height: 780 } });
  await page.addInitScript(() => Object.defineProperty(Navigator.prototype, "gpu", { get: () => undefined }));
  const before = server.requests.length;
  await page.goto(`${server.url}/web/chat/`);
  await page.waitForSelector("#problem:not([hidden])");
  assert.match(await page.textContent("#problem-text"), /^This browser has no WebGPU.*\.$/);
  assert.match(await page.textContent("#problem-hint"), /Chrome.*\.$/);
  assert.ok(await page.isHidden("#loading"));
  assert.ok(await page.isDisabled("#prompt"));
  assert.ok(!server.requests.slice(before).some((path) => path.includes("weights")));
  await page.screenshot({ path: `${pictures}/chat-no-webgpu.png` });
  await page.close();
});

test("the page opens without a network once it was loaded", { timeout: 120_000 }, async () => {
  const context = await browser.newContext({ viewport: { width: 768, height: 900 } });
  const page = await context.newPage();
  await page.goto(`${server.url}/web/chat/?context=1024`);
  await page.waitForSelector("#welcome:not([hidden])", { timeout: 120_000 });
  await context.setOffline(true);
  await page.reload();
  await page.waitForSelector("#welcome:not([hidden])", { timeout: 120_000 });
  await context.close();
});

test("a browser that has WebGPU but no adapter says so", async () => {
  const bare = await launch({ webgpu: false });
  const page = await openPage(bare, `${server.url}/web/chat/`);
  await page.waitForSelector("#problem:not([hidden])");
  assert.match(await page.textContent("#problem-text"), /^This browser has .*WebGPU.*\.$/);
  await bare.close();
});

test("a bundle that is not there, or not a bundle, is said in a sentence", async () => {
  for (const [model, sentence] of [["/nothing/manifest.json", /status 404/], ["/README.md", /manifest cannot be used/]]) {
    const page = await openPage(browser, `${server.url}/web/chat/?model=${model}`);
    await page.waitForSelector("#problem:not([hidden])");
    assert.match(await page.textContent("#problem-text"), sentence);
    await page.close();
  }
});

test("the page fits a phone, and everything has a name", async () => {
  const page = await openPage(browser, `${server.url}/web/chat/?context=1024`, { viewport: { width: 360, height: 700 }, colorScheme: "dark" });
  await page.waitForSelector("#welcome:not([hidden])", { timeout: 120_000 });
  await fitsAndIsNamed(page, "chat");
  await page.screenshot({ path: `${pictures}/chat-phone-dark.png` });
  await page.close();
});
