// The schemas of event types, each read once.
import { get } from "./api";
import type { Schema } from "./types";

class Schemas {
  known = $state.raw<Record<string, Schema>>({});
  readonly #asked = new Set<string>();

  /** Read the schema of a type unless it is known. */
  want(type: string): void {
    if (this.#asked.has(type)) return;
    this.#asked.add(type);
    get<Schema>(`/api/datasets/schema/${encodeURIComponent(type)}`).then(
      (schema) => (this.known = { ...this.known, [type]: schema }),
      () => this.#asked.delete(type),
    );
  }
}

export const schemas = new Schemas();
