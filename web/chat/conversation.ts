/** The turns on the page, and what can be done with each: edit, answer anew, go to another branch. */

import { button, element, make } from "../parts/elements.js";
import { count } from "../parts/numbers.js";
import type { Place, Tree } from "./tree.js";

/** What a person asks of a turn. */
export interface TurnActions {
  edit(place: Place): void;
  retry(place: Place): void;
  branch(place: Place, step: 1 | -1): void;
}

/** Draws the branch of a tree that is shown. */
export class Conversation {
  readonly #root = element("conversation");
  readonly #tree: Tree;
  readonly #actions: TurnActions;
  #drawn = new Map<Place, HTMLElement>();

  constructor(tree: Tree, actions: TurnActions) {
    this.#tree = tree;
    this.#actions = actions;
  }

  /** Draws everything anew; `working` is the turn that is being written. */
  draw(working?: Place): void {
    const path = this.#tree.path();
    this.#drawn = new Map(path.map((place) => [place, this.#turn(place, place === working)]));
    this.#root.replaceChildren(...this.#drawn.values());
    // A screen reader speaks the answer once, when it is whole.
    this.#root.ariaBusy = String(working !== undefined);
    element("welcome").hidden = path.length > 0;
    element("clear").hidden = path.length === 0;
  }

  /** More of the text that is being written. */
  append(place: Place, piece: string): void {
    const follow = this.#atBottom();
    this.#drawn.get(place)?.querySelector(".text")?.append(piece);
    if (follow) this.toBottom();
  }

  /** Pales what a message would give up if it were replaced; nothing without one. */
  paleAfter(place: Place | undefined): void {
    const path = this.#tree.path();
    const from = place ? path.indexOf(place) + 1 : path.length;
    for (const [at, one] of path.entries()) this.#drawn.get(one)?.classList.toggle("given-up", at >= from);
  }

  toBottom(): void {
    document.documentElement.scrollTo({ top: document.documentElement.scrollHeight });
  }

  #turn(place: Place, working: boolean): HTMLElement {
    const { role, text, attached, note } = place.turn;
    const turn = make("article", `turn ${role}${working ? " working" : ""}`);
    turn.ariaLabel = role === "user" ? "You" : "Model";
    if (attached) {
      const summary = make("summary", "", `Document, ${count(attached.tokens)} tokens`);
      turn.append(make("details", "attached", summary, make("div", "document", attached.text)));
    }
    turn.append(make("div", "text", text), make("div", "note", note ?? ""));
    if (!working) turn.append(this.#doings(place));
    return turn;
  }

  #doings(place: Place): HTMLElement {
    const doings = make("div", "doings");
    const { at, of } = this.#tree.among(place);
    if (of > 1) {
      const other = (label: string, sign: string, step: 1 | -1, possible: boolean) => {
        const made = button(sign, "link", () => this.#actions.branch(place, step));
        made.ariaLabel = label;
        made.disabled = !possible;
        return made;
      };
      doings.append(
        other("The branch before", "‹", -1, at > 1), make("span", "quiet", `${at} of ${of}`), other("The next branch", "›", 1, at < of),
      );
    }
    if (place.turn.role === "user") doings.append(button("Edit", "link action", () => this.#actions.edit(place)));
    else doings.append(button("Try again", "link action", () => this.#actions.retry(place)));
    return doings;
  }

  #atBottom(): boolean {
    const { scrollTop, clientHeight, scrollHeight } = document.documentElement;
    return scrollTop + clientHeight > scrollHeight - 120;
  }
}
