// What the package promises about loading, storage, devices and turns, in real Chromium on a random model of three
// layers: its bundle has no tokenizer, so it serves token ids alone.

import assert from "node:assert/strict";
import { readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { gzipSync } from "node:zlib";

import { launch } from "./browser.mjs";
import { openHarness, start, weightBytes } from "./harness.mjs";
import { ids, tinyBundle } from "./tiny.mjs";

let folder, server, browser, page;
/** What goes wrong with the next requests for weights, first to last. */
const faults = [];
before(async () => {
  folder = tinyBundle();
  server = await start(join(folder, "bundle"), intercept);
  browser = await launch();
  page = await openHarness(browser, server);
  await page.evaluate(async ([model, ids]) => {
    globalThis.engine = await moa.createEngine({ model, contextLength: 512 });
    globalThis.expected = await tokens(engine, ids, 24);
  }, [`${server.url}/manifest.json`, ids]);
}, { timeout: 120_000 });
after(async () => {
  await browser?.close();
  server?.close();
  if (folder) rmSync(folder, { recursive: true });
});

function intercept(request, response, path) {
  if (path.startsWith("/moved/")) {
    // A hub sends one elsewhere, to an address that means nothing to the files beside it.
    const name = path.slice("/moved/".length);
    response.writeHead(302, { location: `/elsewhere/${name}?signed=1` }).end();
    return true;
  }
  if (path.startsWith("/elsewhere/")) {
    const bytes = readFileSync(join(folder, "bundle", path.slice("/elsewhere/".length)));
    response.writeHead(200, { "content-type": "application/octet-stream", "content-length": bytes.length }).end(bytes);
    return true;
  }
  if (!path.endsWith(".bin") || !path.includes("weights") || faults.length === 0) return false;
  const bytes = readFileSync(join(folder, "bundle", path.slice(1)));
  faults.shift()(response, bytes, request);
  return true;
}

test("what is kept is not fetched again, is listed, repaired, and deleted", { timeout: 60_000 }, async () => {
  const asked = server.requests.length;
  const result = await page.evaluate(async ([model, ids]) => {
    const before = await moa.cache.list();
    const probed = await moa.probe(model);
    const phases = [];
    const again = await moa.createEngine({ model, contextLength: 512, onProgress: (p) => phases.push([p.phase, p.fromCache]) });
    const same = await tokens(again, ids, 24);
    await again.unload();
    // One bit of the stored weights turned over.
    const content = await (await (await navigator.storage.getDirectory()).getDirectoryHandle("moa-runtime")).getDirectoryHandle("content");
    let damaged;
    for await (const [name, handle] of content.entries()) {
      const file = await handle.getFile();
      if (damaged || file.size < 100_000) continue;
      damaged = name;
      const bytes = new Uint8Array(await file.arrayBuffer());
      bytes[5000] ^= 4;
      const stream = await handle.createWritable();
      await stream.write(bytes);
      await stream.close();
    }
    const repaired = await moa.createEngine({ model, contextLength: 512 });
    const still = await tokens(repaired, ids, 24);
    await repaired.unload();
    const has = await moa.cache.has(model);
    const freed = await moa.cache.delete(model);
    return { before, probed, phases, same, still, expected, first: engine.loadReport, again: again.loadReport, repaired: repaired.loadReport, has, freed, left: await moa.cache.list() };
  }, [`${server.url}/manifest.json`, ids]);
  const bytes = weightBytes(server.manifest);
  assert.deepEqual(result.before, [{ url: `${server.url}/manifest.json`, name: server.manifest.name, bytes, cachedBytes: bytes, complete: true }]);
  assert.equal(result.probed.model.cachedBytes, bytes);
  assert.match(result.probed.message, /can run here and is on this device/);
  assert.deepEqual([result.first.fetchedBytes, result.first.cachedBytes], [bytes, 0]);
  assert.deepEqual([result.again.fetchedBytes, result.again.cachedBytes], [0, bytes]);
  assert.deepEqual(result.phases.at(-1), ["ready", true]);
  assert.equal(result.repaired.repairedChunks, 1);
  assert.deepEqual(result.same, result.expected);
  assert.deepEqual(result.still, result.expected);
  assert.ok(result.has && result.freed >= bytes);
  assert.deepEqual(result.left, []);
  const weights = server.requests.slice(asked).filter((path) => path.includes("weights"));
  assert.equal(weights.length, 1, "only the damaged chunk was fetched again");
});

test("a load ends however often the browser clears up in the middle of it", { timeout: 60_000 }, async (t) => {
  const clearing = await launch({ flags: ["--js-flags=--expose-gc"] });
  // A load that never ends fails the test and would hold it.
  t.after(() => clearing.close());
  const page = await openHarness(clearing, server);
  const reports = await page.evaluate(async (model) => {
    const reports = [];
    const timer = setInterval(gc, 1);
    // From the network, then from this device's storage, which gives many streams in a short time.
    for (let load = 0; load < 6; load++) {
      const engine = await moa.createEngine({ model, contextLength: 512, worker: false });
      reports.push(engine.loadReport);
      await engine.unload();
    }
    clearInterval(timer);
    return reports;
  }, `${server.url}/manifest.json`);
  const bytes = weightBytes(server.manifest);
  assert.deepEqual(reports.map(({ fetchedBytes, cachedBytes }) => [fetchedBytes, cachedBytes]), [[bytes, 0], ...Array.from({ length: 5 }, () => [0, bytes])]);
  assert.ok(reports.every(({ retries, repairedChunks }) => retries === 0 && repairedChunks === 0));
});

test("twenty faults of a real network: each load ends right, or with the error that names it", { timeout: 90_000 }, async () => {
  const half = (bytes) => bytes.subarray(0, bytes.length >> 1);
  const whole = (bytes) => ({ "content-type": "application/octet-stream", "content-length": bytes.length });
  const cases = {
    "status 500": [(response) => response.writeHead(500).end()],
    "status 503, come back now": [(response) => response.writeHead(503, { "retry-after": "0" }).end()],
    "the connection is cut in the middle": [(response, bytes) => { response.writeHead(200, whole(bytes)); response.write(half(bytes), () => response.destroy()); }],
    "the connection is closed at once": [(response) => response.destroy()],
    "an early end without a length": [(response, bytes) => response.writeHead(200, {}).end(half(bytes))],
    "no byte ranges": [
      (response, bytes) => { response.writeHead(200, whole(bytes)); response.write(half(bytes), () => response.destroy()); },
      (response, bytes) => response.writeHead(200, whole(bytes)).end(bytes),
    ],
    "a server that compresses": [(response, bytes) => { const packed = gzipSync(bytes); response.writeHead(200, { ...whole(packed), "content-encoding": "gzip" }).end(packed); }],
    "compressed ranges": [
      (response, bytes) => { response.writeHead(200, whole(bytes)); response.write(half(bytes), () => response.destroy()); },
      (response, bytes) => { const packed = gzipSync(half(bytes)); response.writeHead(206, { "content-encoding": "gzip", "content-length": packed.length }).end(packed); },
    ],
    "another type": [(response, bytes) => response.writeHead(200, { ...whole(bytes), "content-type": "text/plain" }).end(bytes)],
    "one bad answer": [(response, bytes) => { const bad = Buffer.from(bytes); bad[9999] ^= 1; response.writeHead(200, whole(bad)).end(bad); }],
    "a stall": [(response, bytes) => { response.writeHead(200, whole(bytes)); response.write(half(bytes)); }],
    "status 429, come back now": [(response) => response.writeHead(429, { "retry-after": "0" }).end()],
    "two bad gateways": Array(2).fill((response) => response.writeHead(502, { "content-type": "text/html" }).end("<!doctype html>")),
    "cut three times": Array(3).fill((response, bytes, request) => {
      const start = Number(/^bytes=(\d+)/.exec(request.headers.range ?? "")?.[1] ?? 0);
      const part = bytes.subarray(start);
      response.writeHead(start > 0 ? 206 : 200, { ...whole(part), ...(start > 0 ? { "content-range": `bytes ${start}-${bytes.length - 1}/${bytes.length}` } : {}) });
      response.write(part.subarray(0, part.length >> 2), () => response.destroy());
    }),
    "another range than asked": [
      (response, bytes) => { response.writeHead(200, whole(bytes)); response.write(half(bytes), () => response.destroy()); },
      (response, bytes) => { const rest = bytes.subarray(-1000); response.writeHead(206, { ...whole(rest), "content-range": `bytes ${bytes.length - 1000}-${bytes.length - 1}/${bytes.length}` }).end(rest); },
    ],
    "a trickle": [async (response, bytes) => {
      response.writeHead(200, whole(bytes));
      for (let at = 0; at < bytes.length; at += bytes.length / 8) {
        response.write(bytes.subarray(at, at + bytes.length / 8));
        await new Promise((resolve) => setTimeout(resolve, 200));
      }
      response.end();
    }],
    "a page instead": [(response) => response.writeHead(200, { "content-type": "text/html" }).end("<!doctype html>"), /is a web page, not weights/],
    "bad answers only": [...Array(2).fill((response, bytes) => { const bad = Buffer.from(bytes); bad[9999] ^= 1; response.writeHead(200, whole(bad)).end(bad); }), /is damaged/],
    "too long": [(response, bytes) => response.writeHead(200, whole(Buffer.concat([bytes, bytes]))).end(Buffer.concat([bytes, bytes])), /wrong length/],
    "not there": [(response) => response.writeHead(404).end(), /status 404/],
  };
  const rows = [];
  for (const [name, steps] of Object.entries(cases)) {
    const refusal = steps.find((step) => step instanceof RegExp);
    faults.splice(0, Infinity, ...steps.filter((step) => typeof step === "function"));
    const outcome = await page.evaluate(async ([model, ids]) => {
      const patience = { backoffMs: 20, stallMs: 1000 };
      try {
        const engine = await moa.createEngine({ model, contextLength: 512, cache: "none", patience });
        const same = JSON.stringify(await tokens(engine, ids, 4)) === JSON.stringify(expected.slice(0, 4));
        await engine.unload();
        return { same, report: engine.loadReport };
      } catch (error) {
        return { typed: error instanceof moa.MoaError, message: error.message };
      }
    }, [`${server.url}/manifest.json`, ids]);
    rows.push({ fault: name, outcome: outcome.message ?? "right", retries: outcome.report?.retries });
    if (refusal) {
      assert.ok(outcome.typed, name);
      assert.match(outcome.message, refusal, name);
    } else {
      assert.ok(outcome.same, `${name}: ${JSON.stringify(outcome)}`);
    }
    assert.equal(faults.length, 0, `${name}: every fault was met`);
  }
  console.table(rows);
  assert.equal(rows.length, 20);
});

test("files lie beside the manifest as it was asked for, wherever redirects lead", { timeout: 30_000 }, async () => {
  const asked = server.requests.length;
  const same = await page.evaluate(async ([model, ids]) => {
    const engine = await moa.createEngine({ model, contextLength: 512, cache: "none" });
    const made = await tokens(engine, ids, 4);
    await engine.unload();
    return JSON.stringify(made) === JSON.stringify(expected.slice(0, 4));
  }, [`${server.url}/moved/manifest.json`, ids]);
  assert.ok(same);
  assert.ok(server.requests.slice(asked).includes("/moved/weights-000.bin"));
});

test("a model on another origin needs nothing but to be allowed", { timeout: 30_000 }, async () => {
  const there = await start(join(folder, "bundle"), (request, response) => {
    if (request.method !== "OPTIONS") return false;
    response.writeHead(204, { "access-control-allow-headers": "range" }).end();
    return true;
  }, { "access-control-allow-origin": "*" });
  const closed = await start(join(folder, "bundle"));
  const [made, refused] = await page.evaluate(async ([allowed, closed, ids]) => {
    const engine = await moa.createEngine({ model: allowed, contextLength: 512, cache: "none" });
    const made = await tokens(engine, ids, 4);
    await engine.unload();
    return [JSON.stringify(made) === JSON.stringify(expected.slice(0, 4)), await moa.createEngine({ model: closed }).catch(({ code, hint }) => ({ code, hint }))];
  }, [`${there.url}/manifest.json`, `${closed.url}/manifest.json`, ids]);
  there.close();
  closed.close();
  assert.ok(made);
  assert.equal(refused.code, "network");
  assert.match(refused.hint, /Access-Control-Allow-Origin/);
  page.problems.length = 0;
});

test("a full storage ends the keeping, not the load", { timeout: 30_000 }, async () => {
  const context = await browser.newContext();
  const other = await openHarness(context, server);
  const session = await context.newCDPSession(other);
  await session.send("Storage.overrideQuotaForOrigin", { origin: server.url, quotaSize: 60_000 });
  const outcome = await other.evaluate(async ([model, ids]) => {
    let said;
    const engine = await moa.createEngine({ model, contextLength: 512, onProgress: (p) => (said = p.notKept ?? said) });
    const made = await tokens(engine, ids, 4);
    await engine.unload();
    return { report: engine.loadReport, said, made };
  }, [`${server.url}/manifest.json`, ids]);
  assert.match(outcome.report.notKept, /full|storage/);
  assert.equal(outcome.said, outcome.report.notKept);
  assert.equal(outcome.made.length, 4);
  await context.close();
});

test("an abort in the prefill and in the decoding is quick, and nothing is lost", { timeout: 60_000 }, async () => {
  const asked = server.requests.length;
  const result = await page.evaluate(async (ids) => {
    const latency = {};
    for (const kind of ["prefilled", "tokens"]) {
      const controller = new AbortController();
      let at;
      // Another prompt than the one before, so that there is something to prefill.
      const prompt = [kind.length, ...ids, ...ids, ...ids];
      try {
        await tokens(engine, prompt, 150, { signal: controller.signal, onEvent: (event) => {
          if (event.kind === kind && at === undefined) {
            at = performance.now();
            controller.abort();
          }
        } });
        latency[kind] = "it ended";
      } catch (error) {
        latency[kind] = error.code === "aborted" ? performance.now() - at : String(error);
      }
    }
    // Until the engine itself is free again.
    const start = performance.now();
    const after = await tokens(engine, ids, 24);
    const broken = [];
    for await (const event of engine.generate({ ids: [...ids, 1], maxTokens: 150 })) {
      broken.push(event.kind);
      if (event.kind === "tokens") break;
    }
    return { latency, after, again: await tokens(engine, ids, 24), expected, took: performance.now() - start };
  }, ids);
  console.log("abort latency, ms:", JSON.stringify(result.latency));
  // The rest of the text would have taken longer.
  for (const ms of Object.values(result.latency)) assert.ok(ms < 500, String(ms));
  assert.deepEqual(result.after, result.expected);
  assert.deepEqual(result.again, result.expected);
  assert.equal(server.requests.length, asked, "nothing is fetched after loading");
});

test("text without a tokenizer, and the end of the context, are typed errors", async () => {
  const refused = await page.evaluate(() =>
    engine.chat.completions.create({ messages: [{ role: "user", content: "x" }] }).catch((error) => ({ code: error.code, hint: error.hint })));
  assert.equal(refused.code, "no-tokenizer");
  assert.match(refused.hint, /generate/);
  const codes = await page.evaluate(async (ids) => {
    const code = (promise) => promise.then(() => "none", (error) => error.code);
    const full = Array.from({ length: 512 }, (_, i) => ids[i % 100]);
    return [await code(tokens(engine, full, 1)), await code(engine.logits(full)), (await tokens(engine, full.slice(0, 511), 10)).length];
  }, ids);
  assert.deepEqual(codes, ["context-overflow", "context-overflow", 1]);
});

test("two engines at once, one of them in the page's own thread, give what each gives alone", { timeout: 60_000 }, async () => {
  const result = await page.evaluate(async ([model, ids]) => {
    const other = await moa.createEngine({ model, contextLength: 512, worker: false, plan: "dense" });
    const alone = await tokens(other, ids, 24);
    const [a, b] = await Promise.all([tokens(engine, ids, 24), tokens(other, [...ids].reverse(), 24).then(() => tokens(other, ids, 24))]);
    await other.unload();
    const dead = await other.logits(ids).catch((error) => error.code);
    return { a, b, alone, expected, dead };
  }, [`${server.url}/manifest.json`, ids]);
  assert.deepEqual(result.a, result.expected);
  assert.deepEqual(result.b, result.alone);
  assert.notDeepEqual(result.alone, result.expected, "the plans differ");
  assert.equal(result.dead, "unloaded");
});

test("weights go from the network to the device without a copy in wasm memory", { timeout: 60_000 }, async () => {
  // A page of its own, into whose thread no module was loaded yet.
  const context = await browser.newContext();
  const fresh = await openHarness(context, server);
  const expected = await page.evaluate(() => expected);
  const result = await fresh.evaluate(async ([model, ids, expected]) => {
    const seen = { direct: 0, throughWasm: 0 };
    let memory;
    const { instantiate, instantiateStreaming } = WebAssembly;
    const noted = (result) => ((memory = result.instance.exports.memory), result);
    WebAssembly.instantiate = async (...args) => noted(await instantiate(...args));
    WebAssembly.instantiateStreaming = async (...args) => noted(await instantiateStreaming(...args));
    const { writeBuffer } = GPUQueue.prototype;
    GPUQueue.prototype.writeBuffer = function (buffer, at, data, ...rest) {
      if (/^weights\.\d+$/.test(buffer.label)) seen[(data.buffer ?? data) === memory.buffer ? "throughWasm" : "direct"] += data.byteLength;
      return writeBuffer.call(this, buffer, at, data, ...rest);
    };
    const load = async () => {
      const engine = await moa.createEngine({ model, contextLength: 512, worker: false, cache: "none" });
      const same = JSON.stringify(await tokens(engine, ids, 8)) === JSON.stringify(expected.slice(0, 8));
      await engine.unload();
      return { ...seen, same, wasmBytes: memory.buffer.byteLength };
    };
    const caught = await load();
    // And where a buffer cannot be caught: the other way, which the counter must tell from this one.
    seen.direct = seen.throughWasm = 0;
    const { set } = Map.prototype;
    Map.prototype.set = function (key, value) { return /^weights\.\d+$/.test(key) ? this : set.call(this, key, value); };
    const missed = await load();
    Map.prototype.set = set;
    return { caught, missed };
  }, [`${server.url}/manifest.json`, ids, expected]);
  await context.close();
  const bytes = weightBytes(server.manifest);
  console.log("bytes of weights:", bytes, JSON.stringify(result));
  assert.ok(result.caught.same && result.missed.same);
  assert.deepEqual([result.caught.direct, result.caught.throughWasm], [bytes, 0]);
  assert.equal(result.missed.direct, 0);
  assert.ok(result.missed.throughWasm >= bytes);
});

test("a device of the page's own is used, and left alone", { timeout: 60_000 }, async () => {
  const result = await page.evaluate(async ([model, ids]) => {
    const device = await (await navigator.gpu.requestAdapter()).requestDevice();
    let made = 0;
    const { createBuffer } = device;
    device.createBuffer = (descriptor) => { made++; return createBuffer.call(device, descriptor); };
    const lent = await moa.createEngine({ model, contextLength: 512, worker: false, device });
    const same = await tokens(lent, ids, 24);
    await lent.unload();
    const lost = await Promise.race([device.lost.then(() => true), new Promise((resolve) => setTimeout(() => resolve(false), 100))]);
    const refused = await moa.createEngine({ model, device }).catch((error) => error.code);
    device.destroy();
    return { same, expected, made, lost, refused };
  }, [`${server.url}/manifest.json`, ids]);
  assert.deepEqual(result.same, result.expected);
  assert.ok(result.made > 10);
  assert.equal(result.lost, false);
  assert.equal(result.refused, "bad-argument");
});

test("device.destroy() in mid-stream: ten times greedy, ten times sampled, and each stream is the uninterrupted one", { timeout: 90_000 }, async () => {
  const result = await page.evaluate(async ([model, ids]) => {
    let device;
    const { requestDevice } = GPUAdapter.prototype;
    GPUAdapter.prototype.requestDevice = async function (...args) { return (device = await requestDevice.apply(this, args)); };
    const recoveries = [];
    const mortal = await moa.createEngine({ model, contextLength: 512, worker: false, onRecovery: (r) => { if (!r.progress) recoveries.push(r.reason); } });
    const rows = [];
    const sampling = { temperature: 1.2, topP: 0.95, seed: 11, presencePenalty: 0.4, frequencyPenalty: 0.2, repetitionPenalty: 1.1 };
    for (const [choice, options] of [["greedy", {}], ["sampled", sampling]]) {
      for (const after of ["prefilled", 0, 1, 2, 3, 5, 8, 13, 21, "idle"]) {
        if (after === "idle") device.destroy();
        let done = after === "idle";
        // Different prompts, so that there is always something to prefill.
        const prompt = [rows.length, ...ids];
        const made = await tokens(mortal, prompt, 24, { ...options, onEvent: (event, made) => {
          if (done || (after === "prefilled" ? event.kind !== "prefilled" : made.length < after)) return;
          done = true;
          device.destroy();
        } });
        rows.push({ choice, after, recoveries: stats.recoveries, same: JSON.stringify(made) === JSON.stringify(await tokens(engine, prompt, 24, options)) });
      }
    }
    GPUAdapter.prototype.requestDevice = requestDevice;
    await mortal.unload();
    return { rows, recoveries };
  }, [`${server.url}/manifest.json`, ids]);
  console.table(result.rows);
  for (const { choice, after, same, recoveries } of result.rows) {
    assert.ok(same, `${choice}, after ${after}`);
    assert.ok(after === 21 || recoveries === 1, `${choice}, after ${after}: ${recoveries} recoveries`);
  }
  assert.ok(result.recoveries.every((reason) => /lost/.test(reason)));
});

test("turns go on from the rings, from copies of them, and from a snapshot in another engine", { timeout: 90_000 }, async () => {
  const result = await page.evaluate(async ([model, ids]) => {
    const chat = await moa.createEngine({ model, contextLength: 512, turnSnapshotBytes: 1e8 });
    const fresh = await moa.createEngine({ model, contextLength: 512, turnSnapshotBytes: 0 });
    const ask = async (engine, prompt, count) => ({ made: await tokens(engine, prompt, count), read: stats.promptTokens - stats.cachedTokens, copies: stats.turnSnapshotBytes });
    const one = await ask(chat, ids, 90);
    const second = [...ids, ...one.made, ...ids.slice(0, 20)];
    const two = await ask(chat, second, 90);
    const retry = await ask(chat, second, 90);
    const edited = [...ids, ...one.made.slice(0, 3), 7, 7, 7];
    const edit = await ask(chat, edited, 8);
    const snapshot = await chat.snapshot();
    await fresh.restore(structuredClone(snapshot));
    const moved = await ask(fresh, [...edited, ...edit.made, 3], 8);
    const whole = {
      two: await ask(fresh, [...second].map((id) => id), 90),
      edit: await ask(fresh, edited, 8),
      moved: await ask(fresh, [5], 1).then(() => ask(fresh, [...edited, ...edit.made, 3], 8)),
    };
    const foreign = await moa.createEngine({ model, contextLength: 256 });
    const refused = await foreign.restore(snapshot).catch((error) => error.code);
    for (const engine of [chat, fresh, foreign]) await engine.unload();
    return { one, two, retry, edit, moved, whole, refused, memory: chat.memory().turnSnapshotBytes };
  }, [`${server.url}/manifest.json`, ids]);
  assert.equal(result.one.read, 100);
  // The last token of the answer was not in the cache yet.
  assert.equal(result.two.read, 21);
  assert.equal(result.retry.read, 1, "another try prefills only the token whose logits begin the answer");
  assert.ok(result.edit.read <= 7, `an edit within reach of the first prompt's copy read ${result.edit.read}`);
  assert.ok(result.moved.read <= 2);
  assert.deepEqual(result.retry.made, result.two.made);
  assert.deepEqual(result.two.made, result.whole.two.made, "as if the whole conversation had been prefilled anew");
  assert.deepEqual(result.edit.made, result.whole.edit.made);
  assert.deepEqual(result.moved.made, result.whole.moved.made);
  assert.ok(result.memory > 0);
  assert.equal(result.refused, "bad-argument");
});

test("how likely tokens are agrees with the logits, and penalties lead elsewhere", { timeout: 30_000 }, async () => {
  const result = await page.evaluate(async (ids) => {
    const logprobs = [];
    const onEvent = (event) => { if (event.kind === "tokens") logprobs.push(...(event.logprobs ?? [])); };
    const reported = await tokens(engine, ids, 8, { logprobs: 3, onEvent });
    const penalties = { presencePenalty: 2, frequencyPenalty: 2, repetitionPenalty: 1.5 };
    return {
      logits: [...await engine.logits(ids)], logprobs, reported, expected,
      penalized: await tokens(engine, ids, 24, penalties),
      same: await tokens(engine, ids, 24, penalties),
      // In batches on their way, and one by one.
      sampled: await tokens(engine, ids, 24, { temperature: 1, topP: 0.9, seed: 5, ...penalties }),
      oneByOne: await tokens(engine, ids, 24, { temperature: 1, topP: 0.9, seed: 5, ...penalties, logprobs: 0 }),
    };
  }, ids);
  assert.deepEqual(result.reported, result.expected.slice(0, 8));
  const best = Math.max(...result.logits);
  const normalizer = best + Math.log(result.logits.reduce((sum, logit) => sum + Math.exp(logit - best), 0));
  const [first] = result.logprobs;
  assert.equal(first.id, result.logits.indexOf(best));
  assert.ok(Math.abs(first.logprob - (best - normalizer)) < 1e-3);
  assert.equal(first.top[0].id, first.id);
  assert.ok(first.top[0].logprob >= first.top[1].logprob && first.top[1].logprob >= first.top[2].logprob);
  assert.deepEqual(result.same, result.penalized);
  assert.deepEqual(result.oneByOne, result.sampled);
  assert.ok(new Set(result.penalized).size >= new Set(result.expected).size);
});

test("an engine that is unloaded in mid-stream, or whose worker dies, fails what waits with a typed error", { timeout: 60_000 }, async () => {
  const codes = await page.evaluate(async ([model, ids]) => {
    const code = (promise) => promise.then(() => "none", (error) => error.code);
    const one = await moa.createEngine({ model, contextLength: 512 });
    const waiting = code(tokens(one, ids, 300, { onEvent: (event) => { if (event.kind === "tokens") void one.unload(); } }));
    const unloaded = [await waiting, await code(one.logits(ids))];
    const missing = await code(moa.createEngine({ model, contextLength: 512, worker: new Worker("/nothing.js", { type: "module" }) }));
    const worker = new Worker("/harness/worker.js", { type: "module" });
    const ended = await moa.createEngine({ model, contextLength: 512, worker });
    const cut = code(tokens(ended, ids, 300, { onEvent: (event) => { if (event.kind === "tokens") worker.terminate(); } }));
    const terminated = [await cut, await code(ended.logits(ids))];
    await ended.unload();
    const misspelt = await code(moa.createEngine({ model, contextlength: 512 }));
    const controller = new AbortController();
    const loading = code(moa.createEngine({ model, contextLength: 512, signal: controller.signal, onProgress: (p) => { if (p.phase === "device") controller.abort(); } }));
    return { unloaded, missing, terminated, misspelt, aborted: await loading };
  }, [`${server.url}/manifest.json`, ids]);
  assert.deepEqual(codes, {
    unloaded: ["unloaded", "unloaded"], missing: "internal", terminated: ["internal", "internal"], misspelt: "unsupported-option", aborted: "aborted",
  });
});
