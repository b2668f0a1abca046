// Forms from the JSON Schemas that agents and settings declare.

export interface JsonSchema {
  readonly type?: string | readonly string[];
  readonly title?: string;
  readonly description?: string;
  readonly properties?: Record<string, JsonSchema>;
  readonly required?: readonly string[];
  readonly enum?: readonly unknown[];
  readonly const?: unknown;
  readonly minimum?: number;
  readonly maximum?: number;
  readonly exclusiveMinimum?: number;
  readonly exclusiveMaximum?: number;
  readonly minLength?: number;
  readonly maxLength?: number;
  readonly default?: unknown;
}

export type Control = "choice" | "boolean" | "integer" | "number" | "text" | "json";

/** Return what a value of a schema is entered with. */
export function controlOf(schema: JsonSchema): Control {
  if (schema.enum) return "choice";
  const type = Array.isArray(schema.type) ? schema.type.find((each) => each !== "null") : schema.type;
  if (type === "boolean" || type === "integer" || type === "number") return type;
  return type === "string" ? "text" : "json";
}

/** Return the limits of a schema in words. */
export function limitsOf(schema: JsonSchema): string {
  const low = schema.minimum ?? schema.exclusiveMinimum;
  const high = schema.maximum ?? schema.exclusiveMaximum;
  const parts = [
    low === undefined ? "" : `${schema.minimum === undefined ? "more than" : "at least"} ${low}`,
    high === undefined ? "" : `${schema.maximum === undefined ? "less than" : "at most"} ${high}`,
    schema.maxLength === undefined ? "" : `at most ${schema.maxLength} characters`,
  ];
  return parts.filter(Boolean).join(", ");
}

/** Return the value that a text means for a schema; undefined for an empty one. */
export function valueOf(schema: JsonSchema, text: string): unknown {
  if (text === "") return undefined;
  switch (controlOf(schema)) {
    case "choice":
      return schema.enum!.find((each) => String(each) === text);
    case "boolean":
      return text === "true";
    case "integer":
    case "number": {
      const value = Number(text);
      if (Number.isNaN(value)) throw new Error(`${text} is not a number`);
      return value;
    }
    case "text":
      return text;
    case "json":
      return JSON.parse(text) as unknown;
  }
}

export interface Change {
  readonly name: string;
  readonly before: unknown;
  readonly after: unknown;
}

/** Return what differs between two flat documents. */
export function differences(before: Record<string, unknown>, after: Record<string, unknown>): Change[] {
  const names = [...new Set([...Object.keys(before), ...Object.keys(after)])].sort();
  return names
    .filter((name) => JSON.stringify(before[name]) !== JSON.stringify(after[name]))
    .map((name) => ({ name, before: before[name], after: after[name] }));
}
