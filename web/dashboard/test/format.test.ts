import { describe, expect, it } from "vitest";
import { age, bytes, duration, exactLamports, integer, number, short, sol, toJson } from "../src/lib/format";

const SPACE = "\u202f";

describe("sol", () => {
  it("rounds half away from zero and groups digits", () => {
    expect(sol(1_234_567_890_123n, 3)).toBe(`1${SPACE}234.568`);
    expect(sol(-23_625_882n)).toBe("−0.023626");
  });

  it("does not show a small amount as zero", () => {
    expect(sol(1n, 6)).toBe("<0.000001");
    expect(sol(0n, 2)).toBe("0.00");
  });

  it("has the exact amount for the title", () => {
    expect(exactLamports(9_007_199_254_740_993n)).toBe(`9${SPACE}007${SPACE}199${SPACE}254${SPACE}740${SPACE}993 lamports`);
  });
});

it("keeps integers beyond 2^53 exact in copied JSON", () => {
  expect(toJson({ at_ns: 1796032238415339173n, n: 3, x: 1.5 }, 0)).toBe('{"at_ns":1796032238415339173,"n":3,"x":1.5}');
});

it("does not take text for a number in copied JSON", () => {
  expect(toJson({ a: "12", b: 12n }, 0)).toBe('{"a":"12","b":12}');
});

it("shows durations in one unit", () => {
  expect([40, 1500, 120_000, 7_200_000, 400_000_000].map(duration)).toEqual(["40 ms", "2 s", "2 min", "2 h", "5 d"]);
  expect(age(400)).toBe("now");
});

it("shows sizes, integers and long names", () => {
  expect([bytes(512), bytes(1536), bytes(5 * 2 ** 30)]).toEqual(["512 B", "1.5 KiB", "5.0 GiB"]);
  expect(integer(-1234567)).toBe(`−1${SPACE}234${SPACE}567`);
  expect([short("abc"), short("So11111111111111111111111111111111111111112")]).toEqual(["abc", "So1111…1112"]);
});

it("keeps two digits of numbers near zero", () => {
  expect([number(0.0667, 1), number(-0.0004), number(1.4e-7, 4), number(0), number(2.5, 1)]).toEqual(["0.067", "−0.00040", "1.4e−7", "0", "2.5"]);
});
