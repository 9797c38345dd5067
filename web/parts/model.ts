/**
 * Which model a page runs, and what a person sees while it loads. Address: `?model=URL` of a manifest or `hf:name` (by
 * default the bundle in the folder above the pages), `?plan=NAME`, `?context=TOKENS`, `?kernels=NAME` as in `EngineOptions`;
 * links to other pages keep it.
 */

import { type Engine, type EngineOptions, type ForkOptions, type LoadProgress, MoaError, type ProbedModel, createEngine, probe } from "moa-runtime";

import { element } from "./elements.js";
import { keepPages } from "./keep.js";
import { mib, sentence } from "./numbers.js";

const address = new URL(location.href);

/** The model of this page. */
export const model: string = (() => {
  const named = address.searchParams.get("model");
  if (named?.startsWith("hf:")) return named;
  return new URL(named ?? "../../manifest.json", address).href;
})();
/** What the address says, if anything. */
export const asked = {
  plan: address.searchParams.get("plan") ?? undefined,
  context: Number(address.searchParams.get("context")) || undefined,
};
const kernels = address.searchParams.get("kernels");

/** Opens this page again with another choice; `undefined` takes one back. */
export function choose(choices: Readonly<Record<string, string | undefined>>): void {
  for (const [name, value] of Object.entries(choices)) {
    if (value === undefined) address.searchParams.delete(name);
    else address.searchParams.set(name, value);
  }
  location.assign(address);
}

/** From now on the address, and links to the other pages, say that the page has another plan. */
export function notePlan(plan: string): void {
  address.searchParams.set("plan", plan);
  history.replaceState(undefined, "", address);
  keepChoice();
}

/** Links to the other pages lead to the same model. */
export function keepChoice(): void {
  const { search } = address;
  for (const link of document.querySelectorAll<HTMLAnchorElement>(".top a, a[data-choice]")) link.search = search;
}

/** Looks whether the model can run here and keeps the pages; nothing, and the reason on the page, where it cannot. */
export async function prepare(): Promise<ProbedModel | undefined> {
  keepChoice();
  element("loading").hidden = false;
  const device = await probe();
  if (!device.ok) {
    problem(device.message, device.hint);
    return undefined;
  }
  await keepPages();
  const probed = await probe(model);
  if (!probed.model) problem(probed.message, probed.hint);
  return probed.model;
}

/** An engine for this page's model and plan, with its progress on the page; nothing, and the reason, where there is none. */
export async function open(options: Partial<EngineOptions> & { label?: string } = {}): Promise<Engine | undefined> {
  const { label, ...engine } = options;
  element("loading").hidden = false;
  try {
    return await createEngine({ model, ...askedPlan(), ...(kernels ? { kernels } : {}), onProgress: (progress) => showProgress(progress, label), ...engine });
  } catch (error) {
    failed(error);
    return undefined;
  }
}

/** Another engine of the same weights, likewise. */
export async function fork(engine: Engine, options: ForkOptions & { label: string }): Promise<Engine | undefined> {
  const { label, ...wanted } = options;
  element("loading-text").textContent = `${label}: getting ready`;
  element("loading-bar").removeAttribute("value");
  try {
    return await engine.fork({ ...askedPlan(), ...wanted });
  } catch (error) {
    failed(error);
    return undefined;
  }
}

function askedPlan(): { plan?: string } {
  return asked.plan ? { plan: asked.plan } : {};
}

/** Nothing is being loaded any more. */
export function loaded(): void {
  element("loading").hidden = true;
}

function showProgress(progress: LoadProgress, label: string | undefined): void {
  element("loading-text").textContent = label === undefined ? progress.text : `${label}: ${progress.text.toLowerCase()}`;
  const bar = element<HTMLProgressElement>("loading-bar");
  if (progress.phase === "download" || progress.phase === "ready") bar.value = progress.progress;
  else bar.removeAttribute("value");
  const rate = progress.bytesPerSec > 0 ? `${mib(progress.bytesPerSec)}/s` : "";
  const source = progress.fromCache ? "from this device" : "";
  const kept = progress.notKept ? `not kept: ${progress.notKept}` : "";
  element("loading-rate").textContent = [rate, source, kept].filter(Boolean).join("; ");
}

/** Says what is wrong in a sentence, in place of the page's content. */
export function problem(message: string, hint: string | undefined): void {
  loaded();
  element("problem").hidden = false;
  element("problem-text").textContent = sentence(message);
  element("problem-hint").textContent = sentence(hint ?? "");
}

/** The same of an error. */
export function failed(error: unknown): void {
  const { message, hint } = MoaError.from(error);
  problem(message, hint);
}
