/** The chat page. It uses the package as any page would; what it adds is only what a person sees. */

import { type Engine, MoaError, type Recovery } from "moa-runtime";

import { element } from "../parts/elements.js";
import { asked, choose, failed, loaded, notePlan, open, prepare } from "../parts/model.js";
import { modelName } from "../parts/names.js";
import { count } from "../parts/numbers.js";
import { offerPlans } from "../parts/plans.js";
import { Composer } from "./composer.js";
import { Conversation } from "./conversation.js";
import { followSettings, settings, showFigures, showSpeed, showUsed } from "./figures.js";
import { offerModels, takeModel } from "./models.js";
import { type Attached, type Place, Tree, messagesTo } from "./tree.js";

const tree = new Tree();
let engine: Engine | undefined;
let running: AbortController | undefined;
/** The message that the next one takes the place of. */
let editing: Place | undefined;
let usedTokens = 0;

const composer = new Composer({
  send: (text, attached) => say(text, attached),
  stop: () => running?.abort(),
  leave: () => {
    if (editing) edit(undefined);
    running?.abort();
  },
});
const conversation = new Conversation(tree, {
  edit: (place) => running || edit(place),
  retry: (place) => running || void answer(place.before),
  branch: (place, step) => {
    if (running) return;
    tree.turnTo(place, step);
    conversation.draw();
  },
});

async function start(): Promise<void> {
  followSettings();
  takeModel();
  const model = await prepare();
  await offerModels();
  if (!model) return composer.close();
  offerPlans(model, asked.plan, true, (plan) => void changePlan(plan));
  engine = await open({
    ...(asked.context ? { contextLength: asked.context } : {}),
    onRecovery,
  });
  if (!engine) return composer.close();
  loaded();
  // By now this one is among them.
  await offerModels();
  const { modelName: name, adapter } = engine;
  element("model-name").textContent = `${modelName(name)} on ${adapter.name || "this device"}`;
  element("model-name").title = name;
  document.title = `${modelName(name)} · moa chat`;
  conversation.draw();
  use(engine);
}

/** From now on this engine answers. */
function use(chosen: Engine): void {
  engine = chosen;
  showFigures(chosen);
  showUsed(usedTokens, chosen.contextLength);
  composer.open(chosen.tokenize.bind(chosen), () => chosen.contextLength - usedTokens);
}

/** Another plan for the same conversation: an engine of the same weights takes the place of this one. */
async function changePlan(plan: string): Promise<void> {
  const before = engine;
  if (!before) return;
  running?.abort();
  composer.close();
  composer.status(`Changing to ${plan}`);
  try {
    use(await before.fork({ plan, onRecovery }));
    notePlan(plan);
    await before.unload();
  } catch (error) {
    // A device that was asked for less than this plan takes: another page asks anew.
    if (MoaError.from(error).code === "limits") return choose({ plan });
    failed(error);
    element<HTMLSelectElement>("plan").value = before.plan().name;
    use(before);
  } finally {
    composer.status("");
  }
}

function onRecovery({ progress }: Recovery): void {
  composer.status(progress?.phase === "ready" ? "" : `The graphics device was lost. ${progress?.text ?? "Looking for another"}`);
}

/** A new message at the end, or in the place of the one that is being edited. */
function say(text: string, attached: Attached | undefined): void {
  if (!engine || running) return;
  const before = editing ? editing.before : tree.path().at(-1);
  editing = undefined;
  composer.status("");
  void answer(tree.add({ role: "user", text, attached }, before));
}

function edit(place: Place | undefined): void {
  editing = place;
  composer.put(place?.turn.text ?? "", place?.turn.attached);
  composer.status(place ? "Editing: sending begins another branch here. Escape leaves it as it is." : "");
  conversation.paleAfter(place);
}

/** Has the model answer a message, beside the answers that it has. */
async function answer(question: Place | undefined): Promise<void> {
  if (!engine || running || !question) return;
  const controller = (running = new AbortController());
  const place = tree.add({ role: "assistant", text: "" }, question);
  const { turn } = place;
  conversation.draw(place);
  conversation.toBottom();
  composer.busy(true);
  const { temperature, longest, instructions } = settings();
  const system = instructions === "" ? [] : [{ role: "system", content: instructions }];
  let firstToken: number | undefined;
  try {
    const stream = await engine.chat.completions.create(
      {
        messages: [...system, ...messagesTo(question)], stream: true, stream_options: { include_usage: true },
        max_tokens: longest, temperature, top_p: 0.9, min_p: 0.05,
      },
      {
        signal: controller.signal,
        onProgress: ({ phase, done, total }) => {
          composer.status(phase === "prefill" ? `Reading ${count(done)} of ${count(total)} tokens` : "");
          const now = performance.now();
          if (phase === "decode") firstToken ??= now;
          if (firstToken !== undefined && done > 1 && now > firstToken) showSpeed((1000 * (done - 1)) / (now - firstToken));
        },
      },
    );
    for await (const chunk of stream) {
      const piece = chunk.choices[0]?.delta.content ?? "";
      turn.text += piece;
      conversation.append(place, piece);
      if (!chunk.usage) continue;
      const { prompt_tokens, completion_tokens, total_tokens, prompt_tokens_details, extra } = chunk.usage;
      showSpeed(extra.decode_tokens_per_s);
      showUsed((usedTokens = total_tokens), engine.contextLength);
      turn.note =
        `${count(completion_tokens)} tokens, ${extra.decode_tokens_per_s.toFixed(1)} per second; ` +
        `read ${count(prompt_tokens - prompt_tokens_details.cached_tokens)} in ${(extra.prefill_ms / 1000).toFixed(1)} s`;
    }
  } catch (error) {
    const { code, message, hint } = MoaError.from(error);
    turn.note = code === "aborted" ? "stopped" : [message, hint].filter(Boolean).join("; ");
    if (code === "device-lost") failed(error);
  } finally {
    running = undefined;
    composer.status("");
    composer.busy(false);
    // The conversation may have been given up meanwhile.
    if (tree.path().includes(place)) conversation.draw();
  }
}

element("clear").addEventListener("click", () => {
  running?.abort();
  edit(undefined);
  tree.clear();
  conversation.draw();
  if (engine) showUsed((usedTokens = 0), engine.contextLength);
});
void start();
