// Headless Chromium on the software GPU, for the tests in this folder. `cargo xtask test` sets the environment:
//
//   MOA_CHROMIUM        the browser that tests/web/vulkan_shim.c was put into (cargo xtask setup)
//   LVP_SO              the Vulkan driver that the shim forwards to
//   MOA_CHROMIUM_PLAIN  Chromium as it is installed: it has SwiftShader, without f16 and slow, for tiny shapes

import assert from "node:assert/strict";

import { chromium } from "playwright-core";

import { FLAGS } from "../../web/chromium.mjs";

/** An environment variable that must be set. */
export function required(name) {
  const value = process.env[name];
  assert.ok(value, `${name} is not set; run \`cargo xtask test --only e2e\``);
  return value;
}

/** Starts a browser; without WebGPU, on SwiftShader, or with more flags, if asked. */
export function launch({ webgpu = true, swiftshader = false, flags = [] } = {}) {
  required("LVP_SO");
  return chromium.launch({
    executablePath: required(swiftshader ? "MOA_CHROMIUM_PLAIN" : "MOA_CHROMIUM"),
    args: [...FLAGS, webgpu ? "--enable-unsafe-webgpu" : "--disable-features=WebGPU", ...flags],
    env: process.env,
  });
}

/** The page is no wider than its window, and every control of it has a name. */
export async function fitsAndIsNamed(page, what) {
  const { scroll, client } = await page.evaluate(() => ({
    scroll: document.documentElement.scrollWidth, client: document.documentElement.clientWidth,
  }));
  assert.ok(scroll <= client, `${what} is ${scroll} wide on a screen of ${client}`);
  const nameless = await page.evaluate(() => [...document.querySelectorAll("button, select, textarea, input, progress, [tabindex='0']")]
    .filter((control) => !(control.textContent.trim() || control.ariaLabel || control.getAttribute("aria-labelledby") || control.labels?.length))
    .map((control) => control.outerHTML));
  assert.deepEqual(nameless, [], what);
}

/** A page that fails the test when a script of it fails. */
export async function openPage(browser, url, options = {}) {
  const page = await browser.newPage(options);
  const problems = [];
  page.on("pageerror", (error) => problems.push(String(error)));
  page.on("console", (message) => {
    if (message.type() === "error") problems.push(message.text());
  });
  page.problems = problems;
  await page.goto(url);
  return page;
}
