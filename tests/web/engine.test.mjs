// The package in real Chromium on a real model: recorded tokens, abort, damage, memory, silence on the network.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";

import { chapters } from "../../web/chapters.js";
import { launch, openPage } from "./browser.mjs";
import { recorded, start, weightBytes } from "./harness.mjs";

/** Where the two best logits are closer than this, another engine may rightly choose the other. */
const CLEAR_MARGIN = 0.15;

const { cases, plan } = recorded();
let server, browser, page;
/** While set, this shard waits: the page is closed over it. */
let held = "/weights-003.bin";
const ranges = [];

before(async () => {
  server = await start(undefined, (request, response, path) => {
    if (path.includes("weights")) ranges.push([path, request.headers.range]);
    return path === held;
  });
  browser = await launch();
  page = await openPage(browser, `${server.url}/harness/`);
  await page.waitForFunction(() => globalThis.moa);
  // A first visit that is broken off by a reload, with all but one shard here.
  const total = weightBytes(server.manifest);
  const last = server.manifest.shards.at(-1).bytes;
  await page.evaluate(([model, plan]) => {
    globalThis.seen = 0;
    moa.createEngine({ model, plan, contextLength: 1024, onProgress: (p) => (globalThis.seen = p.loaded) }).catch(() => undefined);
  }, [`${server.url}/manifest.json`, plan]);
  await page.waitForFunction((bytes) => globalThis.seen >= bytes, total - last, { timeout: 120_000 });
  // The last chunks are being stored.
  await new Promise((resolve) => setTimeout(resolve, 500));
  await page.reload();
  await page.waitForFunction(() => globalThis.moa);
  held = undefined;
  ranges.length = 0;
  const loading = await page.evaluate(async ([model, plan]) => {
    const progress = [];
    globalThis.engine = await moa.createEngine({ model, plan, contextLength: 1024, onProgress: (p) => progress.push(p) });
    globalThis.tokens = async (ids, maxTokens, signal) => {
      const made = [];
      let stats;
      for await (const event of engine.generate({ ids, maxTokens, signal, stopIds: [] })) {
        if (event.kind === "tokens") made.push(...event.ids);
        if (event.kind === "finished") stats = event.stats;
      }
      return { made, stats };
    };
    return { progress, adapter: engine.adapter, memory: engine.memory(), report: engine.loadReport };
  }, [`${server.url}/manifest.json`, plan]);
  console.log("adapter:", JSON.stringify(loading.adapter), "gpu bytes:", JSON.stringify(loading.memory.gpu));
  console.log("load after the reload:", JSON.stringify(loading.report));
  server.progress = loading.progress;
  server.report = loading.report;
}, { timeout: 300_000 });

after(async () => {
  await browser?.close();
  server?.close();
});

test("loading counts every byte of the weights and ends ready", () => {
  const { progress, manifest } = server;
  const total = weightBytes(manifest);
  assert.deepEqual([progress[0].phase, progress.at(-1).phase], ["manifest", "ready"]);
  assert.deepEqual([progress.at(-1).loaded, progress.at(-1).total], [total, total]);
  const loaded = progress.map((report) => report.loaded);
  assert.deepEqual(loaded, [...loaded].sort((a, b) => a - b));
});

test("after a reload in the middle of the download only what was missing is fetched", () => {
  const { report, manifest } = server;
  const total = weightBytes(manifest);
  assert.equal(report.fetchedBytes + report.cachedBytes, total);
  assert.ok(report.cachedBytes >= total - 2 * manifest.shards.at(-1).bytes, JSON.stringify(report));
  assert.deepEqual([...new Set(ranges.map(([path]) => path))].filter((path) => path !== "/weights-003.bin"), [], "the other shards are here");
});

for (const name of ["capital", "rain", "moby-600"]) {
  test(`recorded tokens under the recorded plan: ${name}`, { timeout: 600_000 }, async () => {
    const { ids, plan_greedy: expected, plan_top1_margin: margins } = cases.find((one) => one.name === name);
    const before = server.requests.length;
    let compared = 0;
    let asked = false;
    // From one near-tie to the next: after each, the recorded token is put into the prompt and the rest goes on.
    for (let at = 0; at < expected.length; ) {
      const tie = margins.findIndex((margin, i) => i >= at && margin < CLEAR_MARGIN);
      const end = tie < 0 ? expected.length : tie;
      if (end > at) {
        const prompt = [...ids, ...expected.slice(0, at)];
        const { made, stats } = await page.evaluate(([prompt, count]) => tokens(prompt, count), [prompt, end - at]);
        assert.deepEqual(made, expected.slice(at, end), `tokens ${at} to ${end}`);
        if (asked) assert.ok(stats.cachedTokens >= ids.length - 1, "what was there is not prefilled again");
        asked = true;
        compared += end - at;
        console.log(`${name}: ${end - at} tokens, prefill ${stats.promptTokens - stats.cachedTokens} in ${stats.prefillMs.toFixed(0)} ms, ` +
          `decode ${(stats.decodeMs / stats.completionTokens).toFixed(0)} ms a token`);
      }
      at = end + 1;
    }
    assert.ok(compared >= expected.length / 2, `${compared} of ${expected.length} tokens have a clear margin`);
    assert.equal(server.requests.length, before, "nothing is fetched after loading");
  });
}

test("an abort in the prefill and in the decoding is typed, and the engine goes on exactly", { timeout: 300_000 }, async () => {
  const long = cases.find((one) => one.name === "moby-600").ids;
  const { ids, plan_greedy: expected, plan_top1_margin: margins } = cases.find((one) => one.name === "rain");
  const clear = margins.findIndex((margin) => margin < CLEAR_MARGIN);
  const result = await page.evaluate(async ([long, ids, clear]) => {
    const stopped = [];
    for (const kind of ["prefilled", "tokens"]) {
      const controller = new AbortController();
      const seen = [];
      try {
        for await (const event of engine.generate({ ids: kind === "tokens" ? ids : [...long].reverse(), maxTokens: 400, signal: controller.signal, stopIds: [] })) {
          seen.push(event.kind);
          if (event.kind === kind) controller.abort();
        }
      } catch (error) {
        stopped.push({ typed: error instanceof moa.MoaError, code: error.code, seen });
      }
    }
    return { stopped, again: await tokens(ids, clear) };
  }, [long, ids, clear < 0 ? expected.length : clear]);
  assert.equal(result.stopped.length, 2);
  for (const { typed, code } of result.stopped) assert.deepEqual([typed, code], [true, "aborted"]);
  assert.deepEqual(result.stopped[0].seen, ["prefilled"], "the prefill stopped after its first chunk");
  assert.deepEqual(result.again.made, expected.slice(0, result.again.made.length));
  assert.ok(result.again.made.length > 0);
});

test("what the engine refuses is typed", async () => {
  const codes = await page.evaluate(async () => {
    const code = (promise) => promise.then(() => "none", (error) => (error instanceof moa.MoaError ? error.code : String(error)));
    return {
      overflow: await code(tokens(Array(1024).fill(1), 1)),
      badToken: await code(tokens([1, 2 ** 31], 1)),
      empty: await code(tokens([], 1)),
      option: await code(engine.chat.completions.create({ messages: [{ role: "user", content: "x" }], tools: [] })),
    };
  });
  assert.deepEqual(codes, { overflow: "context-overflow", badToken: "bad-token", empty: "bad-argument", option: "unsupported-option" });
});

test("a seed gives the same answer again, another seed another one", { timeout: 120_000 }, async () => {
  const answers = await page.evaluate(async () => {
    const ask = async (seed) => {
      const request = { messages: [{ role: "user", content: "Tell me a story." }], temperature: 1.5, max_tokens: 8, seed };
      return (await engine.chat.completions.create(request)).choices[0].message.content;
    };
    // From here on the prompt is in the cache, so that every answer begins from the same bits.
    await ask(0);
    return [await ask(1), await ask(2), await ask(1)];
  });
  assert.equal(answers[2], answers[0]);
  assert.notEqual(answers[1], answers[0]);
});

test("chat in OpenAI's shape: greedy text is the recorded one, and the second turn prefills only what is new", { timeout: 300_000 }, async () => {
  const { ids, plan_text: text, plan_greedy: expected, prompt } = cases.find((one) => one.name === "rain");
  const user = /<\|im_start\|>user\n(.*?)<\|im_end\|>/s.exec(prompt)[1];
  const [first, second] = await page.evaluate(async ([content, max_tokens]) => {
    const messages = [{ role: "user", content }];
    const first = await engine.chat.completions.create({ messages, temperature: 0, max_tokens });
    messages.push(first.choices[0].message, { role: "user", content: "Go on." });
    const pieces = [];
    let last;
    for await (const chunk of await engine.chat.completions.create({ messages, temperature: 0, max_tokens: 4, stream: true, stream_options: { include_usage: true } })) {
      pieces.push(chunk.choices[0]?.delta.content ?? "");
      last = chunk;
    }
    return [first, { text: pieces.join(""), usage: last.usage }];
  }, [user, expected.length]);
  console.log("first:", first.choices[0].message.content, "| second:", second.text);
  assert.equal(first.usage.prompt_tokens, ids.length, "the template gives the recorded prompt");
  assert.equal(first.choices[0].message.content, text);
  assert.equal(first.choices[0].finish_reason, "length");
  const { prompt_tokens, prompt_tokens_details } = second.usage;
  assert.ok(prompt_tokens_details.cached_tokens >= ids.length, `${prompt_tokens_details.cached_tokens} of ${prompt_tokens} were there`);
});

test("an answer follows a JSON schema, greedily, by chance and streamed; one module comes for it, once", { timeout: 300_000 }, async () => {
  const schema = {
    type: "object", additionalProperties: false, required: ["city", "country", "population", "coastal"],
    properties: { city: { type: "string", maxLength: 20 }, country: { enum: ["France", "Peru"] }, population: { type: "integer", minimum: 1, maximum: 99_999_999 }, coastal: { type: "boolean" } },
  };
  const before = server.requests.length;
  const result = await page.evaluate(async (schema) => {
    const request = {
      messages: [{ role: "user", content: "Describe Paris as JSON." }], max_tokens: 80,
      response_format: { type: "json_schema", json_schema: { name: "city", schema } },
    };
    const whole = await engine.chat.completions.create({ ...request, temperature: 0 });
    const chance = await engine.chat.completions.create({ ...request, temperature: 1.5, seed: 3, presence_penalty: 0.5 });
    let streamed = "";
    for await (const chunk of await engine.chat.completions.create({ ...request, temperature: 0, stream: true })) streamed += chunk.choices[0]?.delta.content ?? "";
    const object = await engine.chat.completions.create({ ...request, temperature: 0, response_format: { type: "json_object" }, max_tokens: 12 });
    const free = await engine.chat.completions.create({ ...request, temperature: 0, response_format: null, max_tokens: 8 });
    const refused = await engine.chat.completions.create({ ...request, response_format: { type: "json_schema", json_schema: { schema: { type: "nonsense" } } } }).catch((error) => error.code);
    return { whole, chance, streamed, object, free, refused };
  }, schema);
  const text = (answer) => answer.choices[0].message.content;
  console.log([text(result.whole), text(result.chance), text(result.object), text(result.free)].join(" | "));
  for (const answer of [result.whole, result.chance]) {
    assert.equal(answer.choices[0].finish_reason, "stop");
    const { city, country, population, coastal, ...more } = JSON.parse(text(answer));
    assert.ok(typeof city === "string" && city.length <= 20 && schema.properties.country.enum.includes(country), text(answer));
    assert.ok(Number.isInteger(population) && population >= 1 && typeof coastal === "boolean");
    assert.deepEqual(more, {});
  }
  assert.equal(result.streamed, text(result.whole));
  assert.match(text(result.object), /^\{/);
  assert.ok(!text(result.free).startsWith("{"), "without a format the model says something else");
  assert.equal(result.refused, "bad-argument");
  const fetched = server.requests.slice(before).filter((path) => path.endsWith(".wasm"));
  assert.deepEqual(fetched, ["/harness/moa_grammar_bg.wasm"]);
});

test("a JSON answer goes on in its grammar when the device is lost in the middle of it", { timeout: 300_000 }, async () => {
  const result = await page.evaluate(async ([model, plan]) => {
    let device;
    const { requestDevice } = GPUAdapter.prototype;
    GPUAdapter.prototype.requestDevice = async function (...args) { return (device = await requestDevice.apply(this, args)); };
    const schema = { type: "object", additionalProperties: false, required: ["country", "coastal"], properties: { country: { enum: ["France", "Peru"] }, coastal: { type: "boolean" } } };
    const request = {
      messages: [{ role: "user", content: "Describe Paris as JSON." }], max_tokens: 40, temperature: 0,
      response_format: { type: "json_schema", json_schema: { schema } },
    };
    const mortal = await moa.createEngine({ model, plan, contextLength: 1024, worker: false });
    let text = "";
    let done = false;
    let recoveries;
    for await (const chunk of await mortal.chat.completions.create({ ...request, stream: true, stream_options: { include_usage: true } })) {
      text += chunk.choices[0]?.delta.content ?? "";
      if (text.length > 8 && !done) {
        done = true;
        device.destroy();
      }
      recoveries = chunk.usage?.extra.recoveries;
    }
    GPUAdapter.prototype.requestDevice = requestDevice;
    await mortal.unload();
    return { text, recoveries, undisturbed: (await engine.chat.completions.create(request)).choices[0].message.content };
  }, [`${server.url}/manifest.json`, plan]);
  console.log(result.text);
  assert.equal(result.recoveries, 1);
  assert.equal(result.text, result.undisturbed);
  assert.deepEqual(Object.keys(JSON.parse(result.text)), ["country", "coastal"]);
});

test("a second turn after a document of 1,800 tokens prefills only its own tokens, and gives what a fresh prefill gives", { timeout: 900_000 }, async () => {
  const result = await page.evaluate(async ([model, text]) => {
    const options = { model, contextLength: 2048 };
    const ask = async (engine, ids, maxTokens) => {
      const made = [];
      for await (const event of engine.generate({ ids, maxTokens, stopIds: [] })) {
        if (event.kind === "tokens") made.push(...event.ids);
        if (event.kind === "finished") return { made, stats: event.stats };
      }
    };
    const chat = await moa.createEngine(options);
    const document = chat.tokenize(text).slice(0, 1800);
    const turn = (text) => chat.tokenize(`<|im_end|>\n<|im_start|>user\n${text}<|im_end|>\n<|im_start|>assistant\n`);
    const first = [...chat.tokenize("<|im_start|>user\n"), ...document, ...chat.tokenize("\n\nWho tells this story?<|im_end|>\n<|im_start|>assistant\n")];
    const one = await ask(chat, first, 16);
    const second = [...first, ...one.made, ...turn("Where does he want to go?")];
    const own = second.length - first.length;
    const two = await ask(chat, second, 16);
    const logits = await chat.logits(second);
    await chat.unload();
    const fresh = await moa.createEngine(options);
    const whole = await ask(fresh, second, 16);
    const wholeLogits = await fresh.logits(second);
    const most = Math.max(...wholeLogits.map(Math.abs));
    const error = Math.max(...wholeLogits.map((logit, id) => Math.abs(logit - logits[id]))) / most;
    const texts = [one.made, two.made].map((ids) => fresh.detokenize(ids));
    await fresh.unload();
    return { first: first.length, own, one: one.stats, two, whole, error, texts };
  }, [`${server.url}/manifest.json`, chapters(2).map(({ text }) => text).join("\n\n")]);
  const { first, own, one, two, whole, error, texts } = result;
  console.log(JSON.stringify({ first, own, read: two.stats.promptTokens - two.stats.cachedTokens, error, texts }));
  console.log(`prefill: first turn ${one.prefillMs.toFixed(0)} ms, second ${two.stats.prefillMs.toFixed(0)} ms, fresh ${whole.stats.prefillMs.toFixed(0)} ms`);
  assert.ok(first > 1800);
  // The first turn's answer is in the cache but for its last token.
  assert.equal(two.stats.promptTokens - two.stats.cachedTokens, own - 16 + 1);
  assert.deepEqual(two.made, whole.made);
  assert.ok(error < 1e-3, `logits differ by ${error} of the largest`);
});

test("memory is what the manifest said before the download", async () => {
  const { manifest } = server;
  const entry = manifest.plans.find((candidate) => candidate.name === manifest.default_plan);
  const at = entry.at.find((figures) => figures.context === 1024);
  const memory = await page.evaluate(async (model) => {
    const engine = await moa.createEngine({ model, contextLength: 1024 });
    const memory = { ...engine.memory(), plan: engine.plan() };
    await engine.unload();
    return memory;
  }, `${server.url}/manifest.json`);
  assert.equal(memory.kv.cache, at.cache_bytes);
  assert.equal(memory.kv.dense, at.dense_bytes);
  assert.ok(Math.abs(memory.plan.kvDensity - at.kv_density) < 1e-9);
  assert.equal(memory.gpu.kvCache, at.cache_bytes, "and what was allocated");
});

test("a flipped bit in a shard is an integrity error, and no engine comes of it", { timeout: 120_000 }, async () => {
  const outcome = await page.evaluate((model) => moa.createEngine({ model, contextLength: 1024, cache: "none" }).then(
    () => ({ code: "loaded" }),
    (error) => ({ typed: error instanceof moa.MoaError, code: error.code, message: error.message }),
  ), `${server.url}/flipped/manifest.json`);
  assert.deepEqual([outcome.typed, outcome.code], [true, "hash-mismatch"], outcome.message);
  assert.match(outcome.message, /weights-000|shard 0/);
});
