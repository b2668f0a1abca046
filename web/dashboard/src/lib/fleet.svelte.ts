// The fleet, read once for all that shows it: the kill switch on each page, the Fleet page, forms.
import { getAll } from "./api";
import { clock } from "./clock.svelte";
import { Resource } from "./resource.svelte";
import { session } from "./session.svelte";
import { CONTROL_PLANE, type Agent, type Scope } from "./types";

const EVERY_MS = 2000;
const MOST = 50_000;

class Fleet {
  readonly resource = new Resource<Agent[]>((signal) => getAll<Agent>("/api/control/agents?limit=1000", MOST, signal), EVERY_MS);
  /** All agents; the control plane's own replicas are not among them. */
  readonly agents = $derived((this.resource.data ?? []).filter((agent) => agent.module !== CONTROL_PLANE));
  readonly replicas = $derived((this.resource.data ?? []).filter((agent) => agent.module === CONTROL_PLANE));
  readonly modules = $derived([...new Set(this.agents.map((agent) => agent.module))].sort());

  /** Follow the fleet while somebody is signed in and looks; call during a component's setup. */
  follow(): void {
    $effect(() => {
      if (!clock.visible || session.phase !== "ready" || !session.may("agents:read")) return;
      this.resource.start();
      return () => this.resource.stop();
    });
  }

  /** Return the agents of a scope. */
  meant(scope: Scope, target: string): Agent[] {
    if (scope === "all") return this.agents;
    return this.agents.filter((agent) => (scope === "module" ? agent.module : agent.agent_id) === target);
  }
}

export const fleet = new Fleet();
