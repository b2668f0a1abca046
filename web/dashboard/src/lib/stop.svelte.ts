// Sending a level, and following each agent's answer to a command.
import { ApiError, get, messageOf, newKey, post } from "./api";
import { fleet } from "./fleet.svelte";
import { isProposal, type Command, type Delivery, type Level, type Ordered, type Proposal, type Scope } from "./types";

const RETRY_MS = 1000;
const GIVE_UP_MS = 60_000;
const FAST_MS = 250;
const SLOW_MS = 2000;
const FAST_FOR_MS = 15_000;

export interface LevelOrder {
  readonly scope: Scope;
  readonly target: string;
  readonly level: Level;
  readonly reason: string;
  readonly durationS: number | null;
  readonly lowerOnly: boolean;
}

/** A command, from the request to the last answer. */
export class Tracked {
  phase = $state<"sending" | "sent" | "proposed" | "refused">("sending");
  command = $state.raw<Command | null>(null);
  proposal = $state.raw<Proposal | null>(null);
  error = $state<string | null>(null);
  /** How often the request was sent. */
  attempts = $state(0);
  readonly begunMs = Date.now();
  #timer: ReturnType<typeof setTimeout> | undefined;
  #closed = false;

  /** The answers, those with trouble first. */
  get deliveries(): Delivery[] {
    const rank = (one: Delivery) => (one.state === "ERROR" ? 0 : one.state === "SYNCED" ? 3 : one.online === false ? 2 : 1);
    return [...(this.command?.deliveries ?? [])].sort((a, b) => rank(a) - rank(b) || a.agent_id.localeCompare(b.agent_id));
  }

  get done(): boolean {
    return this.deliveries.every((one) => one.state === "SYNCED" || one.state === "ERROR" || one.online === false);
  }

  /** Send the request until the server answers; the key makes the repetitions one order. */
  async send(path: string, body: unknown, persistent: boolean): Promise<void> {
    const idempotencyKey = newKey();
    const until = performance.now() + GIVE_UP_MS;
    while (!this.#closed) {
      this.attempts += 1;
      try {
        this.#take(await post<Ordered>(path, body, { idempotencyKey, timeoutMs: 10_000 }));
        return;
      } catch (error) {
        const again = error instanceof ApiError && (error.code === "unreachable" || error.status === 503 || error.status === 429);
        this.error = messageOf(error);
        if (!persistent || !again || performance.now() > until) {
          this.phase = "refused";
          return;
        }
      }
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
    }
  }

  /** Follow a command that exists. */
  follow(command: Command): void {
    this.#take(command);
  }

  close(): void {
    this.#closed = true;
    clearTimeout(this.#timer);
  }

  #take(answer: Ordered): void {
    this.error = null;
    if (isProposal(answer)) {
      this.proposal = answer;
      this.phase = "proposed";
      return;
    }
    this.command = answer;
    this.phase = "sent";
    void fleet.resource.refresh();
    this.#later();
  }

  #later(): void {
    if (this.#closed || !this.command) return;
    const settled = this.done && Date.now() - this.begunMs > 1000;
    const slow = settled || Date.now() - this.begunMs > FAST_FOR_MS;
    this.#timer = setTimeout(() => void this.#read(), slow ? SLOW_MS : FAST_MS);
  }

  async #read(): Promise<void> {
    try {
      this.command = await get<Command>(`/api/control/commands/${this.command!.id}`);
      this.error = null;
    } catch (error) {
      this.error = messageOf(error);
    }
    this.#later();
  }
}

/** Order a level; a lower one is sent again until the server takes it. */
export function orderLevel(order: LevelOrder): Tracked {
  const tracked = new Tracked();
  const body = {
    scope: order.scope,
    target: order.scope === "all" ? null : order.target,
    level: order.level,
    reason: order.reason,
    duration: order.durationS,
    lower_only: order.lowerOnly,
  };
  void tracked.send("/api/control/kill-switch", body, order.lowerOnly);
  return tracked;
}

/** Who may see and use the kill switch dialog, and with what it opens. */
class StopDialog {
  open = $state(false);
  scope = $state<Scope>("all");
  target = $state("");

  show(scope: Scope = "all", target = ""): void {
    this.scope = scope;
    this.target = target;
    this.open = true;
  }
}

export const stopDialog = new StopDialog();
