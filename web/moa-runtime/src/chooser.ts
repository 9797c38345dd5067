/**
 * The choice of a token on this side of the GPU, for requests with penalties. The engine knows penalties too, but not of
 * tokens that came with a copy of the rings; here every token of the conversation counts. Filters and their order are
 * those of the engine; so is greedy's tie (the smallest id).
 */

import type { Sampling } from "./bindings.js";

/** What makes tokens that were there before less likely. */
export interface Penalties {
  /** Taken from the logit of every token that the answer holds already. */
  presence: number;
  /** Taken as often as the answer holds the token. */
  frequency: number;
  /** Divides the positive logits of tokens in prompt or answer, and multiplies negative ones; 1 does nothing. */
  repetition: number;
}

/** How likely a token was, before temperature, filters and penalties. */
export interface TokenLogprob {
  id: number;
  /** Natural logarithm of its probability. */
  logprob: number;
  /** The likeliest tokens, best first. */
  top: { id: number; logprob: number }[];
}

/** The probability of `id` and the `count` likeliest tokens. */
export function logprobOf(logits: Float32Array, id: number, count: number): TokenLogprob {
  let most = -Infinity;
  for (const logit of logits) if (logit > most) most = logit;
  let sum = 0;
  for (const logit of logits) if (logit > -Infinity) sum += Math.exp(logit - most);
  const normalizer = most + Math.log(sum);
  const at = (index: number) => (logits[index] as number) - normalizer;
  return { id, logprob: at(id), top: largest(logits, count).map((index) => ({ id: index, logprob: at(index) })) };
}

/** Indices of the `count` largest, best first, the smaller index first among equals. */
function largest(logits: Float32Array, count: number): number[] {
  const best: number[] = [];
  if (count <= 0) return best;
  for (let index = 0; index < logits.length; index++) {
    const logit = logits[index] as number;
    if (Number.isNaN(logit) || (best.length === count && logit <= (logits[best[count - 1] as number] as number))) continue;
    let at = best.length;
    while (at > 0 && (logits[best[at - 1] as number] as number) < logit) at--;
    best.splice(at, 0, index);
    if (best.length > count) best.pop();
  }
  return best;
}

/** Chooses tokens of one answer, one after the other. */
export class Chooser {
  readonly #sampling: Sampling;
  readonly #penalties: Penalties;
  readonly #prompt: ReadonlySet<number>;
  /** How often each token is in the answer. */
  readonly #made = new Map<number, number>();
  #random: number;

  constructor(sampling: Sampling, penalties: Penalties, prompt: readonly number[], answer: readonly number[]) {
    this.#sampling = sampling;
    this.#penalties = penalties;
    this.#prompt = penalties.repetition === 1 ? new Set() : new Set(prompt);
    for (const id of answer) this.#count(id);
    this.#random = (sampling.seed ?? 0) >>> 0;
    for (let draw = 0; draw < answer.length; draw++) this.#draw();
  }

  /** The next token, if any logit is a number; changes `logits`. */
  choose(logits: Float32Array): number | undefined {
    this.#penalize(logits);
    const id = this.#pick(logits);
    if (id !== undefined) this.#count(id);
    return id;
  }

  #count(id: number): void {
    this.#made.set(id, (this.#made.get(id) ?? 0) + 1);
  }

  #penalize(logits: Float32Array): void {
    const { presence, frequency, repetition } = this.#penalties;
    if (repetition !== 1) {
      for (const id of new Set([...this.#prompt, ...this.#made.keys()])) {
        const logit = logits[id];
        if (logit !== undefined) logits[id] = logit > 0 ? logit / repetition : logit * repetition;
      }
    }
    for (const [id, times] of this.#made) {
      const logit = logits[id];
      if (logit !== undefined) logits[id] = logit - presence - frequency * times;
    }
  }

  #pick(logits: Float32Array): number | undefined {
    const { temperature = 0, topK = 0, topP = 1, minP = 0 } = this.#sampling;
    const open = (id: number) => Number.isFinite(logits[id] as number);
    if (temperature === 0) {
      let best: number | undefined;
      for (let id = 0; id < logits.length; id++) {
        if ((best === undefined || (logits[id] as number) > (logits[best] as number)) && open(id)) best = id;
      }
      return best;
    }
    let candidates: { id: number; weight: number }[] = [];
    let most = -Infinity;
    for (let id = 0; id < logits.length; id++) {
      if (!open(id)) continue;
      candidates.push({ id, weight: logits[id] as number });
      most = Math.max(most, logits[id] as number);
    }
    if (candidates.length === 0) return undefined;
    candidates.sort((a, b) => b.weight - a.weight || a.id - b.id);
    if (topK > 0) candidates = candidates.slice(0, topK);
    for (const candidate of candidates) candidate.weight = Math.exp((candidate.weight - most) / temperature);
    const total = candidates.reduce((sum, { weight }) => sum + weight, 0);
    let reached = 0;
    const last = candidates.findIndex(({ weight }) => (reached += weight / total) >= topP);
    if (last >= 0) candidates = candidates.slice(0, last + 1);
    // The likeliest has weight 1.
    candidates = candidates.filter(({ weight }) => weight >= minP);
    let left = this.#draw() * candidates.reduce((sum, { weight }) => sum + weight, 0);
    for (const { id, weight } of candidates) {
      left -= weight;
      if (left < 0) return id;
    }
    return candidates.at(-1)?.id;
  }

  /** The next number in [0, 1): mulberry32. */
  #draw(): number {
    this.#random = (this.#random + 0x6d2b79f5) >>> 0;
    let bits = Math.imul(this.#random ^ (this.#random >>> 15), 1 | this.#random);
    bits = (bits + Math.imul(bits ^ (bits >>> 7), 61 | bits)) ^ bits;
    return ((bits ^ (bits >>> 14)) >>> 0) / 2 ** 32;
  }
}
