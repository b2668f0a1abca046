// Who is signed in, and what they may do.
import { ApiError, get, messageOf, post, setApiListener, setCsrfToken } from "./api";
import { link } from "./link.svelte";
import { prefs } from "./prefs.svelte";

export interface Me {
  readonly id: string;
  readonly name: string;
  readonly kind: string;
  readonly user: string | null;
  readonly permissions: string[];
  readonly expires_at: string | null;
  readonly csrf_token: string | null;
}

export type Phase = "starting" | "unreachable" | "signed-out" | "expired" | "ready";
const RETRY_MS = 2000;

class Session {
  phase = $state<Phase>("starting");
  me = $state.raw<Me | null>(null);
  signOutError = $state<string | null>(null);
  #retry: ReturnType<typeof setTimeout> | undefined;

  /** Find out whether this browser has a session. */
  async start(): Promise<void> {
    setApiListener({
      answered: (tookMs) => link.answered(tookMs),
      unreachable: () => link.unreachable(),
      sessionEnded: () => this.#expire(),
      tokenRefused: () => this.#renewToken(),
    });
    if (!prefs.known) {
      this.phase = "signed-out";
      return;
    }
    await this.#load();
  }

  async signIn(name: string, password: string): Promise<void> {
    await post("/api/auth/login", { name, password, browser: true });
    await this.#load();
  }

  /** End the session; if the server does not say that it has ended, `signOutError` says so. */
  async signOut(): Promise<void> {
    this.signOutError = null;
    try {
      await post("/api/auth/logout", {});
    } catch (error) {
      if (!(error instanceof ApiError && error.status === 401)) {
        this.signOutError = `You are still signed in: ${messageOf(error)}`;
        return;
      }
    }
    this.#leave("signed-out");
  }

  /** Say whether the signed-in user has a permission. */
  may(permission: string): boolean {
    return this.me?.permissions.includes(permission) ?? false;
  }

  async #load(): Promise<void> {
    clearTimeout(this.#retry);
    try {
      this.#enter(await get<Me>("/api/auth/me"));
    } catch (error) {
      if (error instanceof ApiError && error.status === 401) {
        this.#leave("signed-out");
        return;
      }
      this.phase = "unreachable";
      this.#retry = setTimeout(() => void this.#load(), RETRY_MS);
    }
  }

  /** Read the CSRF token of this browser's session; another user's must not act for this page. */
  async #renewToken(): Promise<boolean> {
    const me = await get<Me>("/api/auth/me").catch(() => null);
    if (!me?.csrf_token || me.id !== this.me?.id) return false;
    setCsrfToken(me.csrf_token);
    this.me = me;
    return true;
  }

  #enter(me: Me): void {
    setCsrfToken(me.csrf_token ?? "");
    this.me = me;
    this.phase = "ready";
    prefs.setKnown(true);
    link.open(() => this.#expire());
  }

  #expire(): void {
    if (this.phase === "ready") this.#leave("expired");
  }

  #leave(phase: Phase): void {
    setCsrfToken("");
    prefs.setKnown(false);
    link.close();
    this.phase = phase;
    if (phase === "signed-out") this.me = null;
  }
}

export const session = new Session();
