// The protocol, in the page: the same for every contender. A contender has `generate({ ids, text, maxTokens }, onTokens)`.
//
// Times are the page's own clock, from the call to the token's arrival, as a user would see them: nobody's own counters.

/** Loads a contender and has it write a few tokens, so that everything is compiled before anything is timed. */
export async function load(name, options, prompt) {
  const module = await import(`/bench/${name}.js`);
  const start = performance.now();
  const contender = await module.load(options);
  const loaded = performance.now() - start;
  await contender.generate({ ...prompt, maxTokens: 2 }, () => {});
  globalThis.contender = contender;
  return { loadMs: loaded, firstTokensMs: performance.now() - start - loaded, describe: contender.describe() };
}

/** The first tokens of an answer, to be compared before anything is timed. */
export async function answer(prompt, maxTokens) {
  const ids = [];
  let text = "";
  await globalThis.contender.generate({ ...prompt, maxTokens }, (_count, more, piece) => {
    if (more) ids.push(...more);
    if (piece) text += piece;
  });
  return { ids, text };
}

/** Time from the call to the first token. */
export async function prefill(prompt) {
  const start = performance.now();
  let first;
  await globalThis.contender.generate({ ...prompt, maxTokens: 1 }, () => (first ??= performance.now()));
  return { ms: first - start, tokens: prompt.ids.length };
}

/** Time a token once the prompt is in the cache; tokens that arrive with the first are not counted. */
export async function decode(prompt, maxTokens) {
  let first;
  let last;
  let counted = 0;
  await globalThis.contender.generate({ ...prompt, maxTokens }, (count) => {
    last = performance.now();
    if (first === undefined) first = last;
    else counted += count;
  });
  return { ms: last - first, tokens: counted };
}
