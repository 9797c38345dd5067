import { defineConfig } from "vite";

// Vite 7 needs this file, Vite 8 does not.
export default defineConfig({
  // The package finds its worker and its wasm file relative to itself: Vite 7 would move it away from them.
  optimizeDeps: { exclude: ["moa-runtime"] },
  worker: { format: "es" },
});
