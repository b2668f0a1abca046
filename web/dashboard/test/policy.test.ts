import { describe, expect, it } from "vitest";
import { mayRaise, policyChanges } from "../src/lib/policy";
import { limitsOf, valueOf } from "../src/lib/jsonschema";
import type { Limit, PolicyBody } from "../src/lib/types";

const policy = (thresholds: Record<string, number>, more: Partial<PolicyBody> = {}): PolicyBody => ({ policy_id: "p", policy_type: "risk", thresholds, rules: [], enabled: true, ...more });
const LIMITS: Limit[] = [
  { name: "min", tighter: "higher", initial: null },
  { name: "max", tighter: "lower", initial: null },
  { name: "free", tighter: "neither", initial: null },
  { name: "unknown", tighter: null, initial: null },
];
const RULE = { field: "kind", operator: "==", value: "arbitrage" };

describe("mayRaise", () => {
  it.each([
    ["a new policy", null, policy({ min: 1 }), false],
    ["a higher minimum", policy({ min: 1 }), policy({ min: 2 }), false],
    ["a lower minimum", policy({ min: 2 }), policy({ min: 1 }), true],
    ["a higher maximum", policy({ max: 1 }), policy({ max: 2 }), true],
    ["a threshold that does not matter", policy({ free: 1 }), policy({ free: 2 }), false],
    ["an unknown direction", policy({ unknown: 1 }), policy({ unknown: 2 }), true],
    ["a removed threshold", policy({ min: 1 }), policy({}), true],
    ["an added threshold", policy({}), policy({ min: 1 }), false],
    ["a removed rule", policy({}, { rules: [RULE] }), policy({}), true],
    ["an added rule", policy({}), policy({}, { rules: [RULE] }), false],
    ["disabling", policy({}), policy({}, { enabled: false }), true],
    ["another type", policy({}), policy({}, { policy_type: "size" }), true],
  ] as const)("judges %s", (_, before, after, expected) => {
    expect(mayRaise(before, after, LIMITS)).toBe(expected);
  });
});

it("shows only what a version changes", () => {
  expect(policyChanges(policy({ min: 1, max: 5 }), policy({ min: 2, max: 5 }))).toEqual([{ name: "thresholds.min", before: 1, after: 2 }]);
  expect(policyChanges(policy({}, { rules: [RULE] }), policy({}, { rules: [{ ...RULE, value: "sandwich" }] }))).toEqual([{ name: "rules", before: ["kind == arbitrage"], after: ["kind == sandwich"] }]);
});

it("reads values by their schema", () => {
  expect(valueOf({ type: "integer" }, "3")).toBe(3);
  expect(valueOf({ enum: [1, "a"] }, "1")).toBe(1);
  expect(valueOf({ type: "boolean" }, "false")).toBe(false);
  expect(() => valueOf({ type: "number" }, "x")).toThrow("not a number");
  expect(limitsOf({ minimum: 1, exclusiveMaximum: 9 })).toBe("at least 1, less than 9");
});
