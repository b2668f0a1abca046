// Documents of the API, as far as the pages read them.

export const LEVELS = ["HALTED", "REDUCING", "NO_NEW", "ACTIVE"] as const;
export type Level = (typeof LEVELS)[number];
export const LEVEL_MEANING: Record<Level, string> = {
  HALTED: "sends nothing",
  REDUCING: "only closes positions",
  NO_NEW: "opens no new positions",
  ACTIVE: "trades",
};
export type Scope = "all" | "module" | "agent";

export interface Agent {
  readonly agent_id: string;
  readonly module: string;
  readonly online: boolean;
  readonly last_seen: string | null;
  readonly level: Level | null;
  readonly ordered_level: Level | null;
  readonly stepped_down: string | null;
  readonly blocked_by: string[];
  readonly lease_expires_at: string | null;
  readonly lease_remaining_s: number | null;
  readonly last_answer: { readonly command_id: string; readonly state: DeliveryState; readonly reason_code: string | null; readonly reported_at: string | null } | null;
  readonly models: readonly { readonly role: string; readonly id: string; readonly since: string | null }[];
  readonly policies: Record<string, number>;
  readonly configs: Record<string, number>;
  readonly model: { readonly id: string | null; readonly version: string | null; readonly sha256: string | null };
  readonly key_epoch: number;
  readonly clock_offset_ms: number;
  readonly uptime_s: number;
  readonly software_version: string;
  readonly actions: string[];
  readonly action_conflicts: string[];
  readonly required_policies: string[];
  readonly missing_policies: string[];
  readonly enrolled_at: string | null;
}

export type DeliveryState = "NOT_SENT" | "STALE" | "SYNCED" | "ERROR";

export interface Delivery {
  readonly agent_id: string;
  readonly state: DeliveryState;
  readonly reason_code: string | null;
  readonly detail: string | null;
  readonly reported_at: string | null;
  readonly latency_ms: number | null;
  readonly online?: boolean;
}

export interface Target {
  readonly all?: boolean;
  readonly modules?: string[];
  readonly agent_ids?: string[];
}

export interface Command {
  readonly id: string;
  readonly kind: string;
  readonly body: Record<string, unknown>;
  readonly target: Target;
  readonly priority: number;
  readonly issuer: string;
  readonly approvers: string[];
  readonly issued_at: string;
  readonly expires_at: string | null;
  readonly version: { readonly epoch: number; readonly counter: number | bigint };
  readonly published: boolean;
  readonly superseded_by: string | null;
  readonly states: Record<DeliveryState, number>;
  readonly states_online?: Record<DeliveryState, number>;
  readonly deliveries?: Delivery[];
}

export interface Proposal {
  readonly id: string;
  readonly state: string;
  readonly kind: string;
  readonly body: Record<string, unknown>;
  readonly raises: string[];
  readonly level: Level | null;
  readonly reason: string;
  readonly target: Target;
  readonly proposed_by: string;
  readonly approvers: string[];
  readonly rejected_by: string | null;
  readonly approvals_required: number;
  readonly proposed_at: string;
  readonly expires_at: string;
  readonly command_id: string | null;
  readonly deployment_id: string | null;
}

/** An order's answer: the command, or a proposal that waits for approval. */
export type Ordered = (Command & { readonly raises?: undefined }) | Proposal;

export const isProposal = (answer: Ordered): answer is Proposal => (answer as Proposal).approvals_required !== undefined;

export interface Field {
  readonly name: string;
  readonly type: string;
  readonly repeated: boolean;
  readonly unit: string;
  readonly description: string;
  readonly time: boolean;
  readonly fields?: Field[];
}

export interface Schema {
  readonly type: string;
  readonly description: string;
  readonly fields: Field[];
}

export const CONTROL_PLANE = "control-plane";

/** Return a target in words. */
export function targetText(target: Target): string {
  if (target.modules?.length) return `module ${target.modules.join(", ")}`;
  if (target.agent_ids?.length) return target.agent_ids.length > 3 ? `${target.agent_ids.length} agents` : `agent ${target.agent_ids.join(", ")}`;
  return "all agents";
}

export interface Limit {
  readonly name: string;
  readonly tighter: "higher" | "lower" | "neither" | null;
  readonly initial: number | null;
}

/** What an agent declared when it enrolled. */
export interface Declared {
  readonly actions: readonly { readonly name: string; readonly description: string; readonly raises_risk: boolean; readonly params: unknown }[];
  readonly policies: readonly { readonly type: string; readonly required: boolean; readonly thresholds: readonly Limit[] }[];
  readonly configs: readonly Limit[];
}

export interface Policy extends Command {
  readonly policy_id: string;
  readonly state: string;
  readonly effective_from: string | null;
  readonly acknowledged_by: string[];
  readonly refused_by: { readonly agent_id: string; readonly reason_code: string | null; readonly detail: string | null }[];
  readonly waiting_for: string[];
  readonly diff?: unknown;
}

/** The content of a policy, as it is sent and kept. */
export interface PolicyBody {
  readonly policy_id: string;
  readonly policy_type: string;
  readonly thresholds: Record<string, number>;
  readonly rules: readonly { readonly field: string; readonly operator: string; readonly value: string }[];
  readonly enabled: boolean;
}

export interface Job {
  readonly id: string;
  readonly kind: string;
  readonly state: "queued" | "running" | "cancelling" | "succeeded" | "failed" | "cancelled";
  readonly owner: string;
  readonly created_at: string;
  readonly started_at: string | null;
  readonly ended_at: string | null;
  readonly attempts: number;
  readonly progress: {
    readonly done: number;
    readonly total: number;
    readonly share: number;
    readonly remaining_s: number | null;
    readonly note: string;
    readonly figures: Record<string, unknown>;
  } | null;
  readonly error: Record<string, unknown> | null;
  readonly spec: Record<string, unknown> | null;
}

export interface Model {
  readonly id: string;
  readonly created_at: string;
  readonly objective: string;
  readonly features: string[];
  readonly feature_schema: string;
  readonly trees: number;
  readonly forms: Record<string, string>;
  readonly metrics: Record<string, number | null>;
  readonly lineage: Record<string, unknown>;
  readonly aliases: string[];
  readonly archived_at: string | null;
}

export interface Deployment {
  readonly id: string;
  readonly model_id: string;
  readonly module: string;
  readonly form: string;
  readonly stage: string;
  readonly state: string;
  readonly promote: boolean;
  readonly created_at: string | null;
  readonly state_since: string | null;
  readonly canaries: string[];
  readonly previous_model_id: string | null;
  readonly because: string | null;
  readonly rules: { readonly rule: string; readonly value: number | null; readonly bound: number | null; readonly verdict: string; readonly detail: string | null }[];
  readonly steps: {
    readonly stage: string;
    readonly at: string | null;
    readonly by: string;
    readonly reason: string;
    readonly skipped: string[];
    readonly early: boolean;
    readonly settled: boolean;
    readonly commands: { readonly command_id: string | null; readonly role: string; readonly deliveries?: Delivery[] | null; readonly agent_ids: string[] }[];
  }[];
  readonly figures?: { readonly role: string; readonly model_id: string; readonly agents: number; readonly scored: number; readonly failed: number; readonly error_rate: number | null; readonly latency_p50_us: number; readonly latency_p99_us: number; readonly score_psi: number | null }[] | null;
}

export const ACTIVE_JOB = new Set(["queued", "running", "cancelling"]);

export interface AuditEntry {
  readonly log_id: string;
  readonly index: number;
  readonly at_ns: number | bigint;
  readonly actor: string;
  readonly session: string;
  readonly remote: string;
  readonly action: string;
  readonly object: string;
  readonly outcome: string;
  readonly details_json: string;
  readonly correlation_id: string;
}

export interface User {
  readonly name: string;
  readonly role: string;
  readonly disabled: boolean;
  readonly created_at: string;
}

export interface ApiKey {
  readonly id: string;
  readonly name: string;
  readonly owner: string;
  readonly scopes: string[];
  readonly state: string;
  readonly created_at: string;
  readonly expires_at: string;
  readonly used_at: string | null;
  readonly revoked_at: string | null;
}
