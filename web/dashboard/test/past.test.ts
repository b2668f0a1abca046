import { describe, expect, it } from "vitest";
import { Past } from "../src/lib/past";

const ANSWER = {
  cursor: { bundle: { "0": 5, "1": 9 } },
  positions: { bundle: { "0": { latest: 7 }, "1": { latest: 9 } } },
};
const event = (partition: number, offset: bigint) => ({ type: "bundle" as const, partition, offset });

describe("Past", () => {
  it("is read at once when nothing was published since the start", () => {
    const past = new Past();
    past.begin({ cursor: { bundle: { "0": 7 } }, positions: { bundle: { "0": { latest: 7 } } } });
    expect(past.read).toBe(true);
  });

  it("is read with the last event of every partition", () => {
    const past = new Past();
    past.begin(ANSWER);
    past.take(event(0, 5n), false);
    expect(past.read).toBe(false);
    past.take(event(0, 6n), false);
    expect(past.read).toBe(true);
  });

  it("waits for the other partitions when one is behind the end", () => {
    const past = new Past();
    past.begin({ ...ANSWER, cursor: { bundle: { "0": 5, "1": 8 } } });
    past.take(event(1, 8n), true);
    expect([past.over, past.read]).toEqual([true, false]);
    past.take(event(0, 6n), true);
    expect(past.read).toBe(true);
  });

  it("counts events that come before the answer", () => {
    const past = new Past();
    past.take(event(0, 6n), false);
    expect(past.read).toBe(false);
    past.begin(ANSWER);
    expect(past.read).toBe(true);
  });
});
