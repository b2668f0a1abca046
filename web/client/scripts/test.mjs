// Bundles the tests and runs them with Node's own runner; arguments name test files, without folder and ending.
import { spawnSync } from "node:child_process";
import { readdir } from "node:fs/promises";
import { build } from "esbuild";

const wanted = process.argv.slice(2);
const all = (await readdir("test")).filter((name) => name.endsWith(".test.ts")).map((name) => name.slice(0, -".test.ts".length));
const names = wanted.length ? wanted : all;
await build({
  entryPoints: names.map((name) => `test/${name}.test.ts`),
  outdir: "build/test",
  outExtension: { ".js": ".mjs" },
  bundle: true,
  platform: "node",
  format: "esm",
  target: "node20",
  sourcemap: "inline",
  external: ["ws", "@bufbuild/protobuf"],
  logLevel: "warning",
});
const files = names.map((name) => `build/test/${name}.test.mjs`);
const run = spawnSync(process.execPath, ["--enable-source-maps", "--test", ...files], { stdio: "inherit" });
process.exit(run.status ?? 1);
