/** Passages of the book that the build brought along: Moby-Dick, in the public domain. */

/** The chapters; the first call fetches them. */
export async function book(): Promise<readonly { title: string; text: string }[]> {
  return (await import("virtual:book")).default;
}

/** A passage ends with a sentence: so many tokens more are asked for, so that none is missing. */
const SPARE = 2000;

/** Turns text into token ids. */
type Tokenize = (text: string) => readonly number[];

/** A stretch of the book. */
export interface Passage {
  /** Chapter that it begins in. */
  title: string;
  /** In order, each with the space after it. */
  sentences: string[];
}

/** Sentences from a place on, chosen by `random` in [0, 1), until they have `tokens` tokens; a few less, never more. */
export async function passage(tokenize: Tokenize, tokens: number, random: () => number): Promise<Passage> {
  const chapters = await book();
  const paragraphs = chapters.flatMap(({ title, text }) => text.split(/\n+/).map((paragraph) => ({ title, paragraph: paragraph.trim() })));
  const total = paragraphs.reduce((sum, { paragraph }) => sum + paragraph.length, 0);
  // A token has fewer than six characters on average: from here on there is text enough.
  let left = Math.floor(random() * Math.max(1, total - 6 * tokens));
  let at = 0;
  while (left > (paragraphs[at]?.paragraph.length ?? Infinity)) left -= paragraphs[at++]?.paragraph.length ?? 0;
  const title = paragraphs[at]?.title ?? "";
  const sentences: string[] = [];
  let used = 0;
  for (; at < paragraphs.length; at++) {
    for (const piece of split(paragraphs[at]?.paragraph ?? "")) {
      used += tokenize(piece).length;
      if (used > tokens) return { title, sentences };
      sentences.push(piece);
    }
  }
  return { title, sentences };
}

/** The book's first tokens, as many of `tokens` as there are. */
export async function opening(tokenize: Tokenize, tokens: number): Promise<number[]> {
  const { sentences } = await passage(tokenize, tokens + SPARE, () => 0);
  return tokenize(sentences.join("")).slice(0, tokens);
}

/** A paragraph's sentences; the last one ends with the empty line after it. */
function split(paragraph: string): string[] {
  const pieces = paragraph.match(/.+?(?:[.!?]["”’)]*(?:\s+|$)|$)/gs) ?? [];
  return pieces.map((piece, at) => (at === pieces.length - 1 ? `${piece.trimEnd()}\n\n` : piece)).filter((piece) => piece.trim() !== "");
}
