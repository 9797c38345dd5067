/** Which model: the one beside the pages, those on this device, or one from elsewhere. */

import { cache } from "moa-runtime";

import { element, make } from "../parts/elements.js";
import { choose, model } from "../parts/model.js";
import { mib } from "../parts/numbers.js";
import { modelName } from "../parts/names.js";

/** Takes the address of another model, and opens the page again with it. */
export function takeModel(): void {
  element("other-model").addEventListener("submit", (event) => {
    event.preventDefault();
    const address = element<HTMLInputElement>("model-address").value.trim();
    if (address !== "") choose({ model: address, plan: undefined });
  });
}

/** Lists the models on this device; each opens the page again. */
export async function offerModels(): Promise<void> {
  const list = element("models");
  const known = await cache.list();
  const items = known.map(({ url, name, bytes, complete }) => {
    const link = make("a", "", modelName(name));
    const here = url === model;
    const address = new URL(location.href);
    address.searchParams.set("model", url);
    address.searchParams.delete("plan");
    if (here) link.ariaCurrent = "true";
    else link.href = address.href;
    return make("li", "", link, make("span", "quiet", ` ${mib(bytes)}${complete ? "" : ", in part"}`));
  });
  list.replaceChildren(...items);
  list.hidden = items.length === 0;
}
