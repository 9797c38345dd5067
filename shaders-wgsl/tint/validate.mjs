// Checks assembled WGSL with Tint, the compiler of Chromium: naga and Tint accept different programs, and the browser
// uses the latter. Every file becomes a shader module and a compute pipeline on a device with default limits (larger
// workgroups where a source has them) and no features but those that it enables; any error or warning about uniformity is a failure.
//
// Usage (npm `webgpu` 0.6.2 is Dawn and Tint for node; the Vulkan driver must be lavapipe 25 or a real one):
//   cargo run -p moa-shaders --example dump-wgsl -- target/wgsl
//   VK_ICD_FILENAMES=<lvp_icd.json> node shaders-wgsl/tint/validate.mjs target/wgsl
// `webgpu` is resolved from this file's folder upwards, else from the working directory.
// `--modules-only` skips pipelines (much faster: no driver compilation). Exit: 0 all valid, 1 something refused, 2 no device.

import { readdirSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

async function loadWebgpu() {
  try {
    return await import("webgpu");
  } catch {
    const require = createRequire(join(process.cwd(), "package.json"));
    return import(pathToFileURL(require.resolve("webgpu")).href);
  }
}

async function check(device, name, code, modulesOnly) {
  device.pushErrorScope("validation");
  const module = device.createShaderModule({ code, label: name });
  const info = await module.getCompilationInfo();
  const problems = info.messages
    .filter((message) => message.type === "error" || /uniform control flow/.test(message.message))
    .map((message) => `${message.lineNum}:${message.linePos} ${message.type}: ${message.message}`);
  if (problems.length === 0 && !modulesOnly) {
    try {
      await device.createComputePipelineAsync({
        label: name,
        layout: "auto",
        compute: { module, entryPoint: "main" },
      });
    } catch (error) {
      problems.push(error.message);
    }
  }
  const scope = await device.popErrorScope();
  if (scope && problems.length === 0) problems.push(scope.message);
  return problems;
}

async function main() {
  const flags = process.argv.slice(2);
  const modulesOnly = flags.includes("--modules-only");
  const folder = flags.find((flag) => !flag.startsWith("--"));
  if (!folder) {
    console.error("usage: node validate.mjs [--modules-only] FOLDER");
    return 2;
  }
  const { create, globals } = await loadWebgpu();
  Object.assign(globalThis, globals);
  // Held for the whole run: promises never settle once the instance is collected.
  const gpu = create([]);
  globalThis.moaGpu = gpu;
  const adapter = await gpu.requestAdapter();
  if (!adapter) {
    console.error("no WebGPU adapter: set VK_ICD_FILENAMES to a Vulkan driver");
    return 2;
  }
  const features = { f16: "shader-f16", subgroups: "subgroups" };
  // One device for each set of features and size of workgroups, so that no source finds what it does not ask for.
  const devices = new Map();
  const deviceFor = async (code) => {
    const requiredFeatures = [...code.matchAll(/^enable (\w+);$/gm)].map(([, name]) => features[name]).sort();
    const threads = Number(/^const THREADS: u32 = (\d+)u;$/m.exec(code)?.[1] ?? 0);
    const requiredLimits =
      threads > 256 ? { maxComputeInvocationsPerWorkgroup: threads, maxComputeWorkgroupSizeX: threads } : {};
    const key = JSON.stringify([requiredFeatures, requiredLimits]);
    // An adapter gives one device.
    if (!devices.has(key)) {
      const adapter = await gpu.requestAdapter();
      devices.set(key, await adapter.requestDevice({ requiredFeatures, requiredLimits }));
    }
    return devices.get(key);
  };
  const files = readdirSync(folder).filter((name) => name.endsWith(".wgsl")).sort();
  if (files.length === 0) {
    console.error(`no .wgsl files in ${folder}`);
    return 2;
  }
  let refused = 0;
  for (const name of files) {
    const code = readFileSync(join(folder, name), "utf8");
    const problems = await check(await deviceFor(code), name, code, modulesOnly);
    for (const problem of problems) console.error(`${name}: ${problem}`);
    if (problems.length > 0) refused += 1;
  }
  // A validator that cannot fail proves nothing: a barrier in divergent control flow, which naga accepts.
  const divergent = `
    @group(0) @binding(0) var<storage, read_write> data: array<u32>;
    @compute @workgroup_size(64) fn main(@builtin(local_invocation_index) i: u32) {
      if (data[i] == 0u) { workgroupBarrier(); }
    }`;
  if ((await check(await deviceFor(divergent), "control", divergent, modulesOnly)).length === 0) {
    console.error("negative control: a divergent barrier was accepted");
    refused += 1;
  }
  console.log(`${files.length} sources, ${refused} refused (${adapter.info?.description ?? "unknown adapter"})`);
  return refused === 0 ? 0 : 1;
}

// Dawn's threads keep node alive: leave explicitly.
process.exit(await main());
