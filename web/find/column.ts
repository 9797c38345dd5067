/** One of the three answers: what its plan keeps, what it said, and how it stands so far. */

import type { Engine, PlanInfo, Usage } from "moa-runtime";

import { make, makeSvg } from "../parts/elements.js";
import { count, mib, ms, percent } from "../parts/numbers.js";

const BINS = 96;

/** A column of the page. */
export class Column {
  readonly #root = make("article", "card column");
  readonly #text = make("div", "text");
  readonly #verdict = make("p", "verdict");
  readonly #reach = make("p", "reach quiet", "\u00a0");
  readonly #speed = make("b", "", "–");
  readonly #hits = make("b", "", "–");
  readonly #marker = makeSvg("line", { x1: 0, x2: 0, y1: -3, y2: 29, visibility: "hidden" });
  readonly #plan: PlanInfo;
  readonly #context: number;
  #asked = 0;
  #found = 0;

  constructor(title: string, what: string, engine: Engine) {
    this.#plan = engine.plan();
    this.#context = engine.contextLength;
    const { kv } = engine.memory();
    this.#verdict.role = "status";
    this.#root.ariaLabel = title;
    const gauge = make("span", "gauge", make("span"));
    gauge.ariaHidden = "true";
    (gauge.firstElementChild as HTMLElement).style.width = percent(kv.total / kv.dense);
    const row = (term: string, className: string, ...content: (string | Node)[]) => make("div", className, make("dt", "", term), make("dd", "", ...content));
    this.#root.append(
      make("div", "", make("h2", "", title), make("p", "sub quiet", what)),
      this.#strip(),
      this.#reach,
      make("div", "answer", this.#text, this.#verdict),
      make(
        "dl", "",
        row("KV memory", "wide", make("b", "", mib(kv.total)), make("span", "quiet", ` ${percent(kv.total / kv.dense)} of dense`), gauge),
        row("Speed", "", this.#speed, make("span", "quiet", " ms a token")),
        row("Found so far", "", this.#hits),
      ),
    );
  }

  get element(): HTMLElement {
    return this.#root;
  }

  /** Takes the last answer away and marks where the number lies now. */
  begin(depth: number): void {
    this.#root.classList.remove("right", "wrong");
    this.#text.textContent = this.#verdict.textContent = "";
    this.#text.dataset.reading = "Waits for its turn";
    for (const end of ["x1", "x2"]) this.#marker.setAttribute(end, String(depth * BINS));
    this.#marker.setAttribute("visibility", "visible");
    const spans = this.#plan.spans.flat();
    const seeing = spans.filter((span) => this.#sees(span, depth)).length;
    this.#reach.textContent = `${seeing} of ${spans.length} heads still see it`;
    this.#root.classList.add("working");
  }

  reading(done: number, total: number): void {
    this.#text.dataset.reading = `Reading, ${count(done)} of ${count(total)} tokens`;
  }

  append(piece: string): void {
    this.#text.append(piece);
  }

  /** The answer is whole. */
  end(number: string, usage: Usage): void {
    const right = (this.#text.textContent ?? "").replaceAll(",", "").includes(number);
    this.#asked++;
    if (right) this.#found++;
    this.#root.classList.add(right ? "right" : "wrong");
    this.#verdict.textContent = right ? "✓ right" : "✗ wrong";
    this.#speed.textContent = ms(1000 * usage.extra.time_per_output_token_s);
    this.#hits.textContent = `${this.#found} of ${this.#asked}`;
  }

  /** Nothing more comes. */
  rest(): void {
    this.#root.classList.remove("working");
    this.#text.removeAttribute("data-reading");
  }

  /** Whether the last token still sees this place, in a head of this span. */
  #sees(span: number, depth: number): boolean {
    const { sink } = this.#plan;
    return depth * this.#context < sink || (1 - depth) * this.#context < span - sink;
  }

  /** The text from its first token to its last; the darker, the more heads still see that place at the end. */
  #strip(): SVGSVGElement {
    const heads = this.#plan.spans.flat();
    const strip = makeSvg("svg", { class: "strip", viewBox: `0 0 ${BINS} 26`, preserveAspectRatio: "none", "aria-hidden": "true" });
    strip.append(makeSvg("rect", { class: "ground", width: BINS, height: 26 }));
    for (let bin = 0; bin < BINS; bin++) {
      const share = heads.filter((span) => this.#sees(span, (bin + 0.5) / BINS)).length / heads.length;
      strip.append(makeSvg("rect", { class: "seen", x: bin, width: 1, height: 26, "fill-opacity": share.toFixed(3) }));
    }
    strip.append(this.#marker);
    return strip;
  }
}
