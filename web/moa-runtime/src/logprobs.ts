/** How likely tokens were, from the logits that the device chose by. */

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
