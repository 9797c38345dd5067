/** Where a message is written: a text, a document that was pasted, and how much room there is. */

import { element } from "../parts/elements.js";
import { count } from "../parts/numbers.js";
import type { Attached } from "./tree.js";

/** A pasted text from so many characters on becomes a document of its own. */
const DOCUMENT_CHARACTERS = 1500;
/** Short messages fit: nobody wants to count them. */
const COUNTED_CHARACTERS = 200;

/** What the composer asks of the page. */
export interface ComposerEvents {
  send(text: string, attached: Attached | undefined): void;
  stop(): void;
  /** Escape was pressed. */
  leave(): void;
}

/** The form at the bottom. */
export class Composer {
  readonly #prompt = element<HTMLTextAreaElement>("prompt");
  readonly #send = element<HTMLButtonElement>("send");
  readonly #stop = element<HTMLButtonElement>("stop");
  readonly #meter = element("meter");
  readonly #hands = this.#meter.textContent ?? "";
  readonly #status = element("status");
  readonly #events: ComposerEvents;
  #tokenize: (text: string) => readonly number[] = () => [];
  #room: () => number = () => Infinity;
  #attached: Attached | undefined;
  #timer: ReturnType<typeof setTimeout> | undefined;

  constructor(events: ComposerEvents) {
    this.#events = events;
    element("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#submit();
    });
    this.#prompt.addEventListener("keydown", (event) => {
      // While an input method composes, Enter belongs to it.
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.#submit();
    });
    this.#prompt.addEventListener("input", () => this.#measure());
    this.#prompt.addEventListener("paste", (event) => {
      const text = event.clipboardData?.getData("text/plain") ?? "";
      if (text.length < DOCUMENT_CHARACTERS) return;
      event.preventDefault();
      this.attach(text);
    });
    element("detach").addEventListener("click", () => {
      this.attach(undefined);
      this.#prompt.focus();
    });
    this.#stop.addEventListener("click", () => events.stop());
    document.addEventListener("keydown", ({ key }) => {
      if (key === "Escape") events.leave();
    });
    for (const suggestion of element("welcome").querySelectorAll("button")) {
      suggestion.addEventListener("click", () => {
        this.#prompt.value = suggestion.textContent ?? "";
        this.#submit();
      });
    }
  }

  /** From now on messages can be written; `room` says how many tokens are left. */
  open(tokenize: (text: string) => readonly number[], room: () => number): void {
    this.#tokenize = tokenize;
    this.#room = room;
    this.#prompt.disabled = this.#send.disabled = false;
    this.#prompt.focus({ preventScroll: true });
  }

  close(): void {
    this.#prompt.disabled = this.#send.disabled = true;
  }

  /** Stop instead of Send. */
  busy(yes: boolean): void {
    this.#send.hidden = yes;
    this.#stop.hidden = !yes;
    if (!yes) this.#prompt.focus({ preventScroll: true });
  }

  /** Puts an earlier message in, or nothing. */
  put(text: string, attached: Attached | undefined): void {
    this.#prompt.value = text;
    this.attach(attached?.text);
    this.#prompt.focus();
  }

  /** A long text that goes with the message; `undefined` takes it away. */
  attach(text: string | undefined): void {
    this.#attached = text === undefined ? undefined : { text, tokens: this.#tokenize(text).length };
    element("attachment").hidden = !this.#attached;
    if (this.#attached) element("attachment-text").textContent = `Document, ${count(this.#attached.tokens)} tokens`;
    this.#measure();
  }

  status(text: string): void {
    this.#status.textContent = text;
  }

  #submit(): void {
    const text = this.#prompt.value.trim();
    if (text === "" || this.#send.disabled || this.#send.hidden) return;
    const attached = this.#attached;
    this.#prompt.value = "";
    this.attach(undefined);
    this.#events.send(text, attached);
  }

  /** Counts what is written against the room that is left. */
  #measure(): void {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => {
      const text = this.#prompt.value;
      const worth = text.length >= COUNTED_CHARACTERS || this.#attached !== undefined;
      const tokens = worth ? this.#tokenize(text).length + (this.#attached?.tokens ?? 0) : 0;
      const room = this.#room();
      this.#meter.textContent = worth ? `${count(tokens)} tokens; there is room for ${count(room)}` : this.#hands;
      this.#meter.classList.toggle("over", worth && tokens >= room);
    }, 150);
  }
}
