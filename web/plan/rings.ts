/** How full the rings are at a position, and in what bytes: figures alone, from what the engine says of itself. */

import type { Engine } from "moa-runtime";

import { slots } from "../parts/uniform.js";
import type { Head } from "../parts/span-map.js";

/** The rings of one engine. */
export class Rings {
  readonly sink: number;
  readonly #context: number;
  readonly #slack: number;
  readonly #heads: readonly Head[];
  /** One key and its value, in one head. */
  readonly #slotBytes: number;

  constructor(engine: Engine, heads: readonly Head[]) {
    const { sink, slack } = engine.plan();
    this.sink = sink;
    this.#slack = slack;
    this.#context = engine.contextLength;
    this.#heads = heads;
    this.#slotBytes = engine.memory().kv.dense / (heads.length * this.#context);
  }

  /** Places for keys that a head has, sink and slack included. */
  slots({ span }: Head): number {
    return slots(span, this.#slack, this.#context);
  }

  /** How full a head's places are, 0 to 1. */
  fill(head: Head, position: number): number {
    return Math.min(1, position / this.slots(head));
  }

  full(position: number): number {
    return this.#heads.filter((head) => position >= this.slots(head)).length;
  }

  heldBytes(position: number): number {
    return this.#slotBytes * this.#heads.reduce((sum, head) => sum + Math.min(position, this.slots(head)), 0);
  }

  denseBytes(position: number): number {
    return this.#slotBytes * this.#heads.length * position;
  }

  /** The token from which on a head sees everything, its sink apart, when the last of `position` tokens asks. */
  windowStart({ span }: Head, position: number): number {
    return Math.max(0, position - Math.max(span - this.sink, 1));
  }
}
