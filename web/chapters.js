// The book of the pages and of the bench: Moby-Dick, in the public domain, from an npm package that `cargo xtask setup` unpacked.

import { existsSync, readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

const data = fileURLToPath(new URL("../target/tools/book/package/data/", import.meta.url));

/** The first `count` chapters, `{ title, text }[]`. */
export function chapters(count) {
  if (!existsSync(data)) throw new Error("the book is missing: run `cargo xtask setup --demo`");
  return Array.from({ length: count }, (_, at) => {
    const { title, text } = JSON.parse(readFileSync(`${data}chapter_${at + 1}.json`, "utf8"));
    return { title: `${at + 1}. ${title}`, text };
  });
}
