import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { test } from "node:test";

for (const document of ["README.md", "../../docs/clients.md"]) {
  test(`the example in ${document} is the one that the compiler checked`, async () => {
    const [, example] = (await readFile("test/example.ts", "utf8")).split("// ---\n");
    const [, shown] = /```ts\n(.*?)```/s.exec(await readFile(document, "utf8")) ?? [];
    assert.equal(shown, example);
  });
}
