// Conditions of a filter: completion while they are written, and SOL as a unit.
import type { Field } from "./types";

export interface Suggestion {
  /** The whole input after the suggestion is taken. */
  readonly text: string;
  readonly show: string;
  readonly hint: string;
}

const OPERATORS: readonly (readonly [string, string])[] = [
  [">=", "at least"],
  ["<=", "at most"],
  [">", "more than"],
  ["<", "less than"],
  ["==", "equal to"],
  ["!=", "not equal to"],
  ["in", "one of a list"],
  ["not in", "none of a list"],
];
const PLAIN_OPERATORS = new Set(["==", "!=", "in", "not in"]);
const FIELD = /^\s*([\w.]*)$/;
const OPERATOR = /^\s*([\w.]+)\s+([!<>=a-z ]*)$/;
const LITERAL = /^\s*([\w.]+)\s*(>=|<=|==|!=|>|<|not in|in)\s*(.*)$/;

/** Return the fields that all of `lists` have. */
export function commonFields(lists: readonly (readonly Field[])[]): Field[] {
  const [first = [], ...others] = lists;
  return first.filter((field) => others.every((list) => list.some((other) => other.name === field.name && other.type === field.type)));
}

/** Return what may follow in a condition that is being written. */
export function complete(text: string, fields: readonly Field[]): Suggestion[] {
  const field = FIELD.exec(text);
  if (field) {
    const begun = (field[1] ?? "").toLowerCase();
    return fields
      .filter((each) => each.name.includes(begun))
      .sort((a, b) => Number(b.name.startsWith(begun)) - Number(a.name.startsWith(begun)))
      .map((each) => ({ text: `${each.name} `, show: each.name, hint: [each.unit || each.type, each.description].filter(Boolean).join(" · ") }));
  }
  const operator = OPERATOR.exec(text);
  const known = fields.find((each) => each.name === (operator?.[1] ?? LITERAL.exec(text)?.[1]));
  if (operator && !LITERAL.exec(text)?.[3]) {
    const begun = (operator[2] ?? "").trim();
    const found = OPERATORS.filter(([name]) => name.startsWith(begun) && (known?.type !== "bool" || PLAIN_OPERATORS.has(name)));
    if (found.length > 1 || found[0]?.[0] !== begun) {
      return found.map(([name, hint]) => ({ text: `${operator[1]} ${name} `, show: name, hint }));
    }
  }
  const literal = LITERAL.exec(text);
  if (literal && known) return literals(known, literal);
  return [];
}

function literals(field: Field, [, name = "", operator = "", value = ""]: readonly string[]): Suggestion[] {
  const line = (literal: string, hint: string) => ({ text: `${name} ${operator} ${literal}`, show: literal, hint });
  if (field.type === "bool") return ["true", "false"].filter((each) => each.startsWith(value)).map((each) => line(each, field.description));
  if (value) return [];
  if (operator.endsWith("in")) return [line(field.type === "string" ? '[""]' : "[0]", "a list in brackets")];
  if (field.unit === "lamports") return [line("0.01 SOL", "SOL is converted to lamports"), line("1000000", "lamports")];
  if (field.type === "string") return [line('""', "a text in double quotes")];
  return [];
}

/** Return a condition as the server reads it: an amount in SOL becomes lamports. */
export function normalise(text: string): string {
  return text.trim().replace(/(-?\d+(?:\.\d{1,9})?)\s*SOL\b/gi, (_, amount: string) => lamportsOf(amount).toString());
}

/** Return an amount in SOL, as decimal text, in lamports. */
export function lamportsOf(text: string): bigint {
  const [whole = "0", fraction = ""] = text.replace("-", "").split(".");
  const size = BigInt(whole) * 1_000_000_000n + BigInt(fraction.padEnd(9, "0"));
  return text.startsWith("-") ? -size : size;
}
