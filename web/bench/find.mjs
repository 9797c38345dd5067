// Presses the button of the page `find` again and again, as a visitor would, and writes down what the page then shows: hits,
// bytes and milliseconds a token of the three plans, at each context.
//
//   node web/bench/find.mjs --bundle DIR --pages DIR --out DIR [--context 1024,2048] [--rounds 10] [--plan NAME] [--kernels NAME]
//
// MOA_CHROMIUM names the browser (see browser.mjs). Results: OUT/find.json and a picture a context; the table goes to standard
// output. It counts; it does not judge, and numbers and places are the page's own random ones.

import { join, resolve } from "node:path";
import { parseArgs } from "node:util";

import { serve } from "../serve.mjs";
import { openBrowser } from "./browser.mjs";
import { write } from "./results.mjs";

const { values: given } = parseArgs({
  options: {
    bundle: { type: "string" },
    pages: { type: "string" },
    out: { type: "string" },
    context: { type: "string", default: "1024,2048" },
    rounds: { type: "string", default: "10" },
    plan: { type: "string" },
    kernels: { type: "string" },
    "limit-s": { type: "string", default: "600" },
  },
});
if (!given.bundle || !given.pages || !given.out) {
  console.error("usage: find.mjs --bundle DIR --pages DIR --out DIR [--context 1024,2048] [--rounds 10] [--plan NAME] [--kernels NAME] [--limit-s 600]");
  process.exit(1);
}
const contexts = given.context.split(",").map(Number);
const rounds = Number(given.rounds);
const limit = { timeout: 1000 * Number(given["limit-s"]) };

const server = await serve(resolve(given.bundle), { mounts: { "/pages/": resolve(given.pages) } });
const address = `http://localhost:${server.address().port}`;
const result = { date: new Date().toISOString(), rounds, contexts: [] };
for (const context of contexts) {
  const search = new URLSearchParams({ model: `${address}/manifest.json`, context, ...(given.plan ? { plan: given.plan } : {}), ...(given.kernels ? { kernels: given.kernels } : {}) });
  const browser = await openBrowser(`${address}/pages/find/?${search}`, { ready: () => !document.getElementById("run").disabled || !document.getElementById("problem").hidden, limit });
  Object.assign(result, { browser: browser.version, adapter: browser.adapter });
  const { page } = browser;
  const problem = page.locator("#problem");
  if (await problem.isVisible()) throw new Error(`at a context of ${context}: ${await problem.innerText()}`);
  for (let round = 0; round < rounds; round++) {
    await page.click("#run");
    // While it is asked the button is away.
    await page.waitForSelector("#run", { state: "hidden" });
    await page.waitForSelector("#run", { state: "visible", ...limit });
  }
  const columns = await page.$$eval(".column", (all) =>
    all.map((column) => ({
      plan: column.ariaLabel,
      ...Object.fromEntries([...column.querySelectorAll("dl > div")].map((row) => [row.querySelector("dt").textContent, row.querySelector("dd b").textContent])),
    })),
  );
  const requests = await page.locator("#requests").innerText();
  await page.screenshot({ path: join(given.out, `find-${context}.png`), fullPage: true });
  result.contexts.push({ context, columns, requests });
  console.error(`context ${context}: ${JSON.stringify(columns)}`);
  await browser.close();
}
server.close();
write(given.out, "find.json", `${JSON.stringify(result, null, 1)}\n`);
const names = Object.keys(result.contexts[0].columns[0]);
console.log(`| context | ${names.join(" | ")} | requests |\n|${"---|".repeat(names.length + 2)}`);
for (const { context, columns, requests } of result.contexts) {
  for (const column of columns) console.log(`| ${context} | ${names.map((name) => column[name]).join(" | ")} | ${requests} |`);
}
