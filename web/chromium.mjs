// How tests and benches start Chromium. It deliberately launches nothing.

/** Nothing that asks the network for anything of its own. `MOA_CHROMIUM_FLAGS` adds what a machine's own GPU needs. */
export const FLAGS = [
  "--no-sandbox",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
  ...(process.env.MOA_CHROMIUM_FLAGS ?? "").split(" ").filter(Boolean),
];
