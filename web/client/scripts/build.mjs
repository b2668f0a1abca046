// Bundles the package: `index` for bundlers (its dependency stays outside), `standalone` for a page without one, and the worker of both.
import { rm } from "node:fs/promises";
import { build } from "esbuild";

await rm("dist", { recursive: true, force: true });
const shared = { bundle: true, format: "esm", target: "es2022", sourcemap: true, legalComments: "inline", logLevel: "warning" };
await build({ ...shared, entryPoints: { index: "src/index.ts" }, outdir: "dist", external: ["@bufbuild/protobuf"] });
await build({ ...shared, entryPoints: { standalone: "src/index.ts", worker: "src/worker.ts" }, outdir: "dist", minify: true });
