/** What the person sees and touches: elements of the page by their ids. It knows no engine, only its figures. */

import type { Engine, LoadProgress, MoaError, RequestProgress, Usage } from "moa-runtime";

import { modelName } from "./names.js";

function element<E extends HTMLElement>(id: string): E {
  const found = document.getElementById(id);
  if (!found) throw new Error(`the page has no element ${id}`);
  return found as E;
}

const MIB = 1024 * 1024;
const mib = (bytes: number) => `${(bytes / MIB).toLocaleString("en", { maximumFractionDigits: 1 })} MiB`;
const count = (number: number) => number.toLocaleString("en");
const percent = (share: number) => `${(100 * Math.min(Math.max(share, 0), 1)).toFixed(1)}%`;

/** One answer while it comes. */
export interface AssistantTurn {
  append(text: string): void;
  progress(progress: RequestProgress): void;
  finished(usage: Usage): void;
  note(text: string): void;
  end(): void;
}

/** The page. */
export class Page {
  readonly #prompt = element<HTMLTextAreaElement>("prompt");
  readonly #send = element<HTMLButtonElement>("send");
  readonly #stop = element<HTMLButtonElement>("stop");
  readonly #clear = element<HTMLButtonElement>("clear");
  readonly #conversation = element("conversation");
  readonly #status = element("status");
  readonly #meter = element("meter");
  readonly #hands = this.#meter.textContent ?? "";
  readonly #temperature = element<HTMLInputElement>("temperature");
  #contextLength = 0;
  #usedTokens = 0;
  /** Index of the message that is being edited. */
  #editing: number | undefined;
  #retry: () => void = () => undefined;

  // Start

  plans(plans: readonly { name: string; density: number }[], chosen: string, onChoose: (name: string) => void): void {
    const select = element<HTMLSelectElement>("plan");
    const options = plans.map(({ name, density }) => {
      const kept = density < 1 ? `${(100 * density).toFixed(0)}% of keys` : "all keys";
      return new Option(`${name}: ${kept}`, name, name === chosen, name === chosen);
    });
    select.replaceChildren(...options);
    select.addEventListener("change", () => onChoose(select.value));
    element("plan-choice").hidden = false;
  }

  loading(progress: LoadProgress): void {
    element("loading-text").textContent = progress.text;
    const bar = element<HTMLProgressElement>("loading-bar");
    if (progress.phase === "download" || progress.phase === "ready") bar.value = progress.progress;
    else bar.removeAttribute("value");
    const rate = progress.bytesPerSec > 0 ? `${mib(progress.bytesPerSec)}/s` : "";
    const kept = progress.notKept ? `not kept: ${progress.notKept}` : "";
    element("loading-rate").textContent = [rate, kept].filter(Boolean).join("; ");
  }

  /** The graphics device was lost; the package brings another. */
  recovering(progress: LoadProgress | undefined): void {
    this.#status.textContent = progress?.phase === "ready" ? "" : `The graphics device was lost. ${progress?.text ?? "Looking for another"}`;
  }

  ready(engine: Engine): void {
    const { kv } = engine.memory();
    const plan = engine.plan();
    this.#contextLength = engine.contextLength;
    element("loading").hidden = true;
    element("figures").hidden = false;
    element("welcome").hidden = false;
    const name = element("model-name");
    name.textContent = `${modelName(engine.modelName)} on ${engine.adapter.name || "this device"}`;
    name.title = engine.modelName;
    document.title = `${modelName(engine.modelName)} · moa chat`;
    element<HTMLDetailsElement>("heads").open = matchMedia("(min-width: 64rem)").matches;
    this.#meterOf(engine);
    element("density").textContent = percent(plan.kvDensity);
    element("context").textContent = count(engine.contextLength);
    element("kv-bytes").textContent = mib(kv.total);
    element("dense-bytes").textContent = mib(kv.dense);
    element("kv-gauge").style.width = percent(kv.total / kv.dense);
    this.#drawSpans(plan.spans, engine.contextLength);
    this.#used(0);
    this.#prompt.disabled = false;
    this.#send.disabled = false;
    this.#prompt.focus({ preventScroll: true });
  }

  problem(message: string, hint: string | undefined): void {
    element("loading").hidden = true;
    element("problem").hidden = false;
    element("problem-text").textContent = message;
    element("problem-hint").textContent = hint ? `${hint.charAt(0).toUpperCase()}${hint.slice(1)}.` : "";
    this.#prompt.disabled = true;
    this.#send.disabled = true;
  }

  failed(error: unknown): void {
    const { message, hint } = error as Partial<MoaError>;
    const sentence = message ?? String(error);
    this.problem(`${sentence.charAt(0).toUpperCase()}${sentence.slice(1)}.`, hint);
  }

  // Conversation

  /** The message at this place in the conversation. What came after it goes. */
  userTurn(text: string, index: number): void {
    element("welcome").hidden = true;
    this.#clear.hidden = false;
    for (const turn of this.#conversation.querySelectorAll<HTMLElement>(".turn")) {
      if (Number(turn.dataset.index) >= index) turn.remove();
    }
    const turn = this.#add("user", "You", index);
    turn.querySelector(".text")!.textContent = text;
    turn.append(this.#action("Edit", () => this.#edit(index, text)));
    this.#scroll();
  }

  assistantTurn(): AssistantTurn {
    const index = this.#conversation.querySelectorAll(".turn.user").length * 2 - 1;
    for (const old of this.#conversation.querySelectorAll<HTMLElement>(".turn.assistant")) {
      old.querySelector("button")?.remove();
      if (Number(old.dataset.index) >= index) old.remove();
    }
    const turn = this.#add("assistant", "Model", index);
    const text = turn.querySelector(".text")!;
    const note = turn.querySelector(".note")!;
    turn.classList.add("working");
    // A screen reader speaks the answer once, when it is whole.
    this.#conversation.ariaBusy = "true";
    this.#send.hidden = true;
    this.#stop.hidden = false;
    let firstToken: number | undefined;
    return {
      append: (piece) => {
        const follow = this.#atBottom();
        text.append(piece);
        if (follow) this.#scroll();
      },
      progress: ({ phase, done, total }) => {
        if (phase === "prefill") {
          this.#status.textContent = `Reading ${count(done)} of ${count(total)} tokens`;
          return;
        }
        this.#status.textContent = "";
        const now = performance.now();
        firstToken ??= now;
        if (done > 1 && now > firstToken) this.#speed((1000 * (done - 1)) / (now - firstToken));
      },
      finished: (usage) => {
        this.#speed(usage.extra.decode_tokens_per_s);
        this.#used(usage.total_tokens);
        const { prompt_tokens, completion_tokens, prompt_tokens_details, extra } = usage;
        const read = prompt_tokens - prompt_tokens_details.cached_tokens;
        note.textContent =
          `${count(completion_tokens)} tokens, ${extra.decode_tokens_per_s.toFixed(1)} per second; ` +
          `read ${count(read)} in ${(extra.prefill_ms / 1000).toFixed(1)} s`;
      },
      note: (message) => {
        note.textContent = message;
      },
      end: () => {
        turn.classList.remove("working");
        this.#conversation.ariaBusy = "false";
        this.#status.textContent = "";
        this.#stop.hidden = true;
        this.#send.hidden = false;
        if (turn.isConnected) turn.append(this.#action("Try again", () => this.#retry()));
        this.#prompt.focus({ preventScroll: true });
      },
    };
  }

  // Hands

  /** What the person chose beside the message. */
  settings(): { temperature: number; longest: number | null; instructions: string } {
    const longest = Math.floor(element<HTMLInputElement>("longest").valueAsNumber);
    return {
      temperature: Number(this.#temperature.value),
      longest: longest >= 1 ? longest : null,
      instructions: element<HTMLTextAreaElement>("instructions").value.trim(),
    };
  }

  /** `kept` is given where an earlier message is replaced: so many stay. */
  onSend(send: (text: string, kept?: number) => void): void {
    this.#temperature.addEventListener("input", () => (element("temperature-value").textContent = Number(this.#temperature.value).toFixed(1)));
    const submit = (text: string) => {
      if (text.trim() === "" || this.#send.disabled || this.#send.hidden) return;
      const kept = this.#editing;
      this.#edit(undefined, "");
      if (kept === undefined) send(text.trim());
      else send(text.trim(), kept);
    };
    element("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      submit(this.#prompt.value);
    });
    this.#prompt.addEventListener("keydown", (event) => {
      // While an input method composes, Enter belongs to it.
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      submit(this.#prompt.value);
    });
    for (const button of element("welcome").querySelectorAll("button")) {
      button.addEventListener("click", () => submit(button.textContent ?? ""));
    }
  }

  onRetry(retry: () => void): void {
    this.#retry = retry;
  }

  onStop(stop: () => void): void {
    this.#stop.addEventListener("click", stop);
    document.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      if (this.#editing !== undefined) this.#edit(undefined, "");
      stop();
    });
  }

  onClear(clear: () => void): void {
    this.#clear.addEventListener("click", () => {
      clear();
      this.#edit(undefined, "");
      this.#conversation.replaceChildren();
      element("welcome").hidden = false;
      this.#clear.hidden = true;
      this.#used(0);
      this.#prompt.focus();
    });
  }

  // Details

  #action(label: string, act: () => void): HTMLButtonElement {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "link action";
    button.textContent = label;
    button.addEventListener("click", act);
    return button;
  }

  /** Puts an earlier message into the composer, or leaves off. */
  #edit(index: number | undefined, text: string): void {
    if (index !== undefined && this.#send.hidden) return;
    this.#editing = index;
    this.#prompt.value = text;
    this.#prompt.dispatchEvent(new Event("input"));
    this.#status.textContent = index === undefined ? "" : "Editing: sending replaces this message and what came after it. Escape leaves it as it is.";
    for (const turn of this.#conversation.querySelectorAll<HTMLElement>(".turn")) {
      turn.classList.toggle("given-up", index !== undefined && Number(turn.dataset.index) > index);
    }
    if (index !== undefined) this.#prompt.focus();
  }

  /** Counts the composer's tokens against the room that is left. */
  #meterOf(engine: Engine): void {
    let timer: ReturnType<typeof setTimeout> | undefined;
    this.#prompt.addEventListener("input", () => {
      clearTimeout(timer);
      timer = setTimeout(() => {
        const text = this.#prompt.value;
        // Short messages fit: nobody wants to count them.
        if (text.length < 200) {
          this.#meter.textContent = this.#hands;
          this.#meter.classList.remove("over");
          return;
        }
        const tokens = engine.tokenize(text).length;
        const room = this.#contextLength - this.#usedTokens;
        this.#meter.textContent = `${count(tokens)} tokens; there is room for ${count(room)}`;
        this.#meter.classList.toggle("over", tokens >= room);
      }, 150);
    });
  }

  #add(role: "user" | "assistant", speaker: string, index: number): HTMLElement {
    const turn = document.createElement("article");
    turn.className = `turn ${role}`;
    turn.dataset.index = String(index);
    turn.ariaLabel = speaker;
    for (const name of ["text", "note"]) {
      const part = document.createElement("div");
      part.className = name;
      turn.append(part);
    }
    this.#conversation.append(turn);
    return turn;
  }

  /** One column a layer, one cell a KV head: the darker, the further back it sees. */
  #drawSpans(spans: readonly (readonly number[])[], context: number): void {
    const detail = element("span-detail");
    const columns = spans.map((heads, layer) => {
      const column = document.createElement("div");
      for (const [head, span] of heads.entries()) {
        const cell = document.createElement("i");
        cell.style.setProperty("--share", percent(span / context));
        cell.title = `Layer ${layer}, KV head ${head}: ${count(Math.min(span, context))} tokens`;
        cell.addEventListener("pointerenter", () => (detail.textContent = cell.title));
        column.append(cell);
      }
      return column;
    });
    const all = spans.flat().map((span) => Math.min(span, context));
    element("span-least").textContent = "0";
    element("span-most").textContent = `all ${count(context)}`;
    detail.textContent = `From ${count(Math.min(...all))} to ${count(Math.max(...all))} tokens`;
    const grid = element("spans");
    grid.style.setProperty("--heads", String(spans[0]?.length ?? 1));
    grid.role = "img";
    grid.ariaLabel = `Spans of ${spans.length} layers with ${spans[0]?.length ?? 0} KV heads each, from ${Math.min(...all)} to ${Math.max(...all)} tokens`;
    grid.replaceChildren(...columns);
  }

  #speed(tokensPerSecond: number): void {
    element("speed").textContent = tokensPerSecond.toFixed(tokensPerSecond < 10 ? 1 : 0);
  }

  #used(tokens: number): void {
    this.#usedTokens = tokens;
    element("used").textContent = count(tokens);
    element("used-gauge").style.width = percent(tokens / this.#contextLength);
  }

  #atBottom(): boolean {
    const { scrollTop, clientHeight, scrollHeight } = document.documentElement;
    return scrollTop + clientHeight > scrollHeight - 120;
  }

  #scroll(): void {
    document.documentElement.scrollTo({ top: document.documentElement.scrollHeight });
  }
}
