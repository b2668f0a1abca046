import { describe, expect, it } from "vitest";
import { commonFields, complete, lamportsOf, normalise } from "../src/lib/filter";
import type { Field } from "../src/lib/types";

const field = (name: string, type: string, unit = ""): Field => ({ name, type, unit, repeated: false, description: "", time: false });
const FIELDS = [field("tip_lamports", "uint64", "lamports"), field("simulated", "bool"), field("kind", "string"), field("expected_profit_lamports", "sint64", "lamports")];
const shown = (text: string) => complete(text, FIELDS).map((each) => each.show);

describe("complete", () => {
  it("offers fields, those that begin with the text first", () => {
    expect(shown("tip")).toEqual(["tip_lamports"]);
    expect(shown("s")[0]).toBe("simulated");
  });

  it("offers operators behind a field", () => {
    expect(shown("tip_lamports ")).toContain(">=");
    expect(shown("tip_lamports >")).toEqual([">=", ">"]);
  });

  it("offers only comparisons that booleans have", () => {
    expect(shown("simulated ")).toEqual(["==", "!=", "in", "not in"]);
  });

  it("offers literals with their unit", () => {
    expect(shown("simulated == ")).toEqual(["true", "false"]);
    expect(shown("tip_lamports >= ")[0]).toBe("0.01 SOL");
    expect(shown("kind == ")).toEqual(['""']);
  });

  it("offers nothing for an unknown field", () => {
    expect(shown("nonsense >= 1")).toEqual([]);
  });
});

describe("normalise", () => {
  it("converts SOL to lamports exactly", () => {
    expect(normalise(" tip_lamports >= 0.01 SOL ")).toBe("tip_lamports >= 10000000");
    expect(normalise("expected_profit_lamports < -1.5 sol")).toBe("expected_profit_lamports < -1500000000");
  });

  it("leaves other conditions as they are", () => {
    expect(normalise('kind == "SOLANA"')).toBe('kind == "SOLANA"');
  });
});

it("reads decimal amounts without rounding", () => {
  expect(lamportsOf("9007199.254740993")).toBe(9007199254740993n);
});

it("keeps the fields that all types have with the same type", () => {
  expect(commonFields([FIELDS, [field("kind", "string"), field("simulated", "uint32")]]).map((each) => each.name)).toEqual(["kind"]);
});
