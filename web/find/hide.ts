/** A number, hidden in a passage, and the question for it. It knows no engine. */

import { type Passage, passage } from "../parts/book.js";

const INTRO =
  "A special magic number is hidden within the following passage. Make sure to memorize it. I will quiz you about the number afterwards.";
const QUESTION = "What is the special magic number mentioned in the passage?";
const fact = (number: string) => `The special magic number is ${number}. `;
/** Words of the book that are shown on either side. */
const SHOWN = 130;

/** What is asked, and where the number lies. */
export interface Hidden {
  number: string;
  prompt: string;
  /** Chapter that the passage begins in. */
  title: string;
  /** Where in the passage the number lies, 0 to 1. */
  depth: number;
  before: string;
  fact: string;
  after: string;
}

/** Five digits, none of them chosen by anybody. */
function randomNumber(): string {
  return String(10_000 + ((crypto.getRandomValues(new Uint32Array(1))[0] as number) % 90_000));
}

/** Hides a number in a passage, so that the whole prompt has at most `tokens` tokens. */
export async function hide(tokenize: (text: string) => readonly number[], tokens: number): Promise<Hidden> {
  const number = randomNumber();
  const rest = tokenize(`${INTRO}\n\n${fact(number)}\n\n${QUESTION}`).length;
  const found: Passage = await passage(tokenize, tokens - rest, Math.random);
  const at = Math.floor(Math.random() * (found.sentences.length + 1));
  const before = found.sentences.slice(0, at).join("");
  const after = found.sentences.slice(at).join("");
  const text = `${before}${fact(number)}${after}`.trim();
  return {
    number,
    prompt: `${INTRO}\n\n${text}\n\n${QUESTION}`,
    title: found.title,
    depth: before.length / Math.max(1, text.length),
    before: lastWords(before),
    fact: fact(number).trim(),
    after: firstWords(after),
  };
}

function lastWords(text: string): string {
  const flat = text.replace(/\s+/g, " ").trim();
  if (flat.length <= SHOWN) return flat;
  return `… ${flat.slice(-SHOWN).replace(/^\S*\s/, "")}`;
}

function firstWords(text: string): string {
  const flat = text.replace(/\s+/g, " ").trim();
  if (flat.length <= SHOWN) return flat;
  return `${flat.slice(0, SHOWN).replace(/\s\S*$/, "")} …`;
}
