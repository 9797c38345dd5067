/** What the person sees and touches: elements of the page by their ids. It knows no engine, only its figures. */

import type { Engine, LoadProgress, MoaError, RequestProgress, Usage } from "moa-runtime";

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
  #contextLength = 0;

  // Start

  plans(names: readonly string[], chosen: string, onChoose: (name: string) => void): void {
    const select = element<HTMLSelectElement>("plan");
    select.replaceChildren(...names.map((name) => new Option(name, name, name === chosen, name === chosen)));
    select.addEventListener("change", () => onChoose(select.value));
    element("plan-choice").hidden = false;
  }

  loading(progress: LoadProgress): void {
    element("loading-text").textContent = progress.text;
    const bar = element<HTMLProgressElement>("loading-bar");
    if (progress.phase === "download" || progress.phase === "ready") bar.value = progress.progress;
    else bar.removeAttribute("value");
    element("loading-rate").textContent = progress.bytesPerSec > 0 ? `${mib(progress.bytesPerSec)}/s` : "";
  }

  ready(engine: Engine): void {
    const { kv } = engine.memory();
    const plan = engine.plan();
    this.#contextLength = engine.contextLength;
    element("loading").hidden = true;
    element("figures").hidden = false;
    element("welcome").hidden = false;
    element("model-name").textContent = `${engine.modelName} on ${engine.adapter.name || "this device"}`;
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

  userTurn(text: string): void {
    element("welcome").hidden = true;
    this.#clear.hidden = false;
    this.#add("user", "You").querySelector(".text")!.textContent = text;
    this.#scroll();
  }

  assistantTurn(): AssistantTurn {
    const turn = this.#add("assistant", "Model");
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
        this.#prompt.focus({ preventScroll: true });
      },
    };
  }

  // Hands

  onSend(send: (text: string) => void): void {
    const submit = (text: string) => {
      if (text.trim() === "" || this.#send.disabled || this.#send.hidden) return;
      this.#prompt.value = "";
      send(text.trim());
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

  onStop(stop: () => void): void {
    this.#stop.addEventListener("click", stop);
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape") stop();
    });
  }

  onClear(clear: () => void): void {
    this.#clear.addEventListener("click", () => {
      clear();
      this.#conversation.replaceChildren();
      element("welcome").hidden = false;
      this.#clear.hidden = true;
      this.#used(0);
      this.#prompt.focus();
    });
  }

  // Details

  #add(role: "user" | "assistant", speaker: string): HTMLElement {
    const turn = document.createElement("article");
    turn.className = `turn ${role}`;
    turn.ariaLabel = speaker;
    for (const name of ["text", "note"]) {
      const part = document.createElement("div");
      part.className = name;
      turn.append(part);
    }
    this.#conversation.append(turn);
    return turn;
  }

  #drawSpans(spans: readonly (readonly number[])[], context: number): void {
    const columns = spans.map((heads, layer) => {
      const column = document.createElement("div");
      for (const [head, span] of heads.entries()) {
        const cell = document.createElement("i");
        cell.style.setProperty("--share", percent(span / context));
        cell.title = `layer ${layer}, KV head ${head}: ${count(Math.min(span, context))} tokens`;
        column.append(cell);
      }
      return column;
    });
    const grid = element("spans");
    grid.style.setProperty("--heads", String(spans[0]?.length ?? 1));
    grid.role = "img";
    grid.ariaLabel = `Spans of ${spans.length} layers with ${spans[0]?.length ?? 0} KV heads each`;
    grid.replaceChildren(...columns);
  }

  #speed(tokensPerSecond: number): void {
    element("speed").textContent = tokensPerSecond.toFixed(tokensPerSecond < 10 ? 1 : 0);
  }

  #used(tokens: number): void {
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
