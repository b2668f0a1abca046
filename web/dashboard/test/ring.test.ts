import { describe, expect, it } from "vitest";
import { Ring } from "../src/lib/ring";

describe("Ring", () => {
  it("keeps the newest items and their numbers", () => {
    const ring = new Ring<string>(3);
    for (const item of ["a", "b", "c", "d"]) ring.push(item);
    expect([ring.total, ring.oldest, ring.length]).toEqual([4, 1, 3]);
    expect([0, 1, 2, 3, 4].map((number) => ring.at(number))).toEqual([undefined, "b", "c", "d", undefined]);
  });

  it("numbers on after it was cleared", () => {
    const ring = new Ring<string>(3);
    ring.push("a");
    ring.clear();
    expect(ring.length).toBe(0);
    ring.push("b");
    expect([ring.at(0), ring.at(1), ring.length]).toEqual([undefined, "b", 1]);
  });
});
