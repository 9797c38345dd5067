import { defineConfig } from "vite";

export default defineConfig({
  // The package finds its worker and its wasm file relative to itself: Vite's pre-bundling would move it away from them.
  optimizeDeps: { exclude: ["moa-runtime"] },
  build: { target: "es2022" },
  worker: { format: "es" },
});
