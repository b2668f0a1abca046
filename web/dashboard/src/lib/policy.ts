// Policies: what a new version changes, and whether it may raise risk.
import { differences, type Change } from "./jsonschema";
import type { Limit, PolicyBody } from "./types";

type Rule = PolicyBody["rules"][number];

export const ruleText = (rule: Rule): string => `${rule.field} ${rule.operator} ${rule.value}`;

/** Return a policy as a flat document, with one entry for each threshold. */
export function flat(policy: PolicyBody | null): Record<string, unknown> {
  if (!policy) return {};
  const thresholds = Object.entries(policy.thresholds).map(([name, value]) => [`thresholds.${name}`, value]);
  return { policy_type: policy.policy_type, enabled: policy.enabled, rules: policy.rules.map(ruleText), ...Object.fromEntries(thresholds) };
}

export const policyChanges = (before: PolicyBody | null, after: PolicyBody): Change[] => differences(flat(before), flat(after));

/** Say whether a version may raise risk, by the declared directions; the server decides. */
export function mayRaise(before: PolicyBody | null, after: PolicyBody, limits: readonly Limit[]): boolean {
  if (!before) return false;
  if (before.policy_type !== after.policy_type || (before.enabled && !after.enabled)) return true;
  const kept = new Set(after.rules.map(ruleText));
  if (before.rules.some((rule) => !kept.has(ruleText(rule)))) return true;
  const names = new Set([...Object.keys(before.thresholds), ...Object.keys(after.thresholds)]);
  return [...names].some((name) => looser(before.thresholds[name], after.thresholds[name], limits.find((limit) => limit.name === name)));
}

function looser(before: number | undefined, after: number | undefined, limit: Limit | undefined): boolean {
  if (before === after || before === undefined) return false;
  if (limit?.tighter === "neither") return false;
  if (after === undefined || !limit?.tighter) return true;
  return limit.tighter === "higher" ? after < before : after > before;
}
