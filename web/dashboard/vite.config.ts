import { fileURLToPath } from "node:url";
import { svelte } from "@sveltejs/vite-plugin-svelte";
import { defineConfig } from "vitest/config";

const client = fileURLToPath(new URL("../client/dist/", import.meta.url));

export default defineConfig({
  base: "/dashboard/",
  // `tree` builds elements one by one: no HTML is parsed from strings, as Trusted Types demands.
  plugins: [svelte({ compilerOptions: { runes: true, fragments: "tree" } })],
  resolve: {
    alias: [
      { find: /^@mev\/client\/worker(?=\?)/, replacement: `${client}worker.js` },
      { find: /^@mev\/client$/, replacement: `${client}index.js` },
    ],
  },
  worker: { format: "es" },
  build: {
    outDir: "../../src/mev/dashboard/static",
    emptyOutDir: true,
    target: "es2023",
    assetsInlineLimit: 0, // the policy of the pages allows no data: scripts
    modulePreload: { polyfill: false },
    chunkSizeWarningLimit: 300,
  },
  test: { include: ["test/**/*.test.ts"], environment: "node" },
});
