/**
 * A conversation with its branches: every message may have several continuations, one of which is on the page. It knows
 * neither page nor engine.
 */

import type { ChatMessage } from "moa-runtime";

/** A long text that came with a message. */
export interface Attached {
  text: string;
  tokens: number;
}

/** What one side said. */
export interface Turn {
  role: "user" | "assistant";
  text: string;
  attached?: Attached | undefined;
  /** What is to be said of it: speed, or that it was stopped. */
  note?: string;
}

/** A turn in its place. */
export interface Place {
  readonly turn: Turn;
  readonly before: Place | undefined;
  readonly after: Place[];
  /** Which of `after` is on the page. */
  shown: number;
}

/** All branches, and the one that is on the page. */
export class Tree {
  #first: Place[] = [];
  #shown = 0;

  /** The turns on the page, from the first to the last. */
  path(): Place[] {
    const path: Place[] = [];
    let at = this.#first[this.#shown];
    while (at) {
      path.push(at);
      at = at.after[at.shown];
    }
    return path;
  }

  /** Adds a turn after `before`, beside what came there already, and shows it. */
  add(turn: Turn, before: Place | undefined): Place {
    const place: Place = { turn, before, after: [], shown: 0 };
    const row = before ? before.after : this.#first;
    this.#show(before, row.push(place) - 1);
    return place;
  }

  /** Which of how many turns in the same place this is, the first being 1. */
  among(place: Place): { at: number; of: number } {
    const row = place.before ? place.before.after : this.#first;
    return { at: row.indexOf(place) + 1, of: row.length };
  }

  /** Shows the turn that stands `step` beside this one. */
  turnTo(place: Place, step: 1 | -1): void {
    const { at, of } = this.among(place);
    this.#show(place.before, Math.min(Math.max(at - 1 + step, 0), of - 1));
  }

  clear(): void {
    this.#first = [];
    this.#shown = 0;
  }

  #show(before: Place | undefined, index: number): void {
    if (before) before.shown = index;
    else this.#shown = index;
  }
}

/** The messages up to and including this place, as a request takes them. */
export function messagesTo(place: Place | undefined): ChatMessage[] {
  const messages: ChatMessage[] = [];
  for (let at = place; at; at = at.before) {
    const { role, text, attached } = at.turn;
    messages.unshift({ role, content: attached ? `${attached.text}\n\n${text}` : text });
  }
  return messages;
}
