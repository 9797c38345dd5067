// Attention's own time, which no page can read off its clock: `moa-run` times each kernel between two timestamps of the device.
// That is native wgpu, not the browser; its charts say so.

import { execFile } from "node:child_process";
import { readFileSync } from "node:fs";
import { promisify } from "node:util";

/** The kernels that read keys and values, and the one that joins their parts. */
const ATTENTION = /^(attention_decode|merge_lse)/;

/** What the page needs of a document of `moa-run bench --kernels --json`: the sums of attention's kernels over all layers. */
export function attentionOf(document) {
  if (document?.schema !== 2 || !Array.isArray(document.kernels) || document.kernels.length === 0) {
    throw new Error("not a document of `moa-run bench --kernels --json`");
  }
  const { plan, model, context, adapter, kernels } = document;
  return {
    plan,
    model,
    context,
    adapter,
    depths: kernels.map(({ depth, kernels: all, tokenSecs }) => {
      const ours = all.filter(({ kernel }) => ATTENTION.test(kernel));
      const sum = (key) => ours.reduce((total, kernel) => total + kernel[key], 0);
      return { depth, ms: 1000 * sum("secs"), bytes: sum("bytes"), tokenMs: 1000 * tokenSecs };
    }),
  };
}

/** The same of a file. */
export function readNative(path) {
  try {
    return attentionOf(JSON.parse(readFileSync(path, "utf8")));
  } catch (error) {
    throw new Error(`${path}: ${error.message}`);
  }
}

/** The command's words: nothing is prefilled or decoded for a clock, only kernels are timed, under the page's context. */
export const words = (bundle, plan, { contextLength, depths, kernels }) => [
  "bench", "--json", "--kernels", "--assume-depth", "--bundle", bundle, "--plan", plan, "--context", String(contextLength), "--variant", kernels,
  "--prompt-tokens", "0", "--decode-tokens", "0", "--repetitions", "1", ...depths.flatMap((depth) => ["--depth", String(depth)]),
];

/** Runs it for one plan. A machine whose native adapter lacks timestamps still has the rest of the bench: failures are told, not thrown. */
export async function timeNative(program, bundle, plan, options) {
  try {
    const { stdout } = await promisify(execFile)(program, words(bundle, plan, options), { timeout: options.limitMs, maxBuffer: 1 << 26 });
    return attentionOf(JSON.parse(stdout));
  } catch (error) {
    const said = String(error.stderr ?? "").trim().split("\n").at(-1);
    return { plan, failed: said || String(error.message).split("\n")[0] };
  }
}
