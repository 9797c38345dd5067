import assert from "node:assert/strict";
import { test } from "node:test";

import { ProgressMeter } from "../dist/progress.js";

const soon = () => new Promise((resolve) => setTimeout(resolve, 150));

test("the last count of a download that stalls is reported, once", async () => {
  const seen = [];
  const meter = new ProgressMeter(100, ({ phase, loaded }) => seen.push([phase, loaded]));
  for (const loaded of [10, 20, 30]) meter.at("download", loaded);
  assert.deepEqual(seen, [["download", 10]], "reports come no more often than a page can show them");
  await soon();
  assert.deepEqual(seen, [["download", 10], ["download", 30]]);
});

test("what is late does not come after what follows it", async () => {
  const seen = [];
  const meter = new ProgressMeter(100, ({ phase, loaded }) => seen.push([phase, loaded]));
  for (const loaded of [10, 20]) meter.at("download", loaded);
  meter.at("warmup", 100);
  meter.at("download", 30);
  meter.end();
  await soon();
  assert.deepEqual(seen, [["download", 10], ["warmup", 100]]);
});
