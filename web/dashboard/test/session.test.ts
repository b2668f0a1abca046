import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { post, setApiListener, setCsrfToken } from "../src/lib/api";
import { session } from "../src/lib/session.svelte";

const answers: Response[] = [];
const tokens: (string | null)[] = [];

beforeEach(() => {
  answers.length = tokens.length = 0;
  vi.stubGlobal("fetch", async (_path: string, init: RequestInit) => {
    tokens.push(new Headers(init.headers).get("X-CSRF-Token"));
    return answers.shift()!;
  });
});
afterEach(() => vi.unstubAllGlobals());

const answer = (status: number, body: object): Response => new Response(JSON.stringify(body), { status });
const refused = (): Response => answer(403, { code: "cross_site_request", detail: "wrong token" });

/** Listen as the session does; `renewed` is the token that it finds. */
function listen(renewed: string | null): void {
  setCsrfToken("old");
  setApiListener({
    answered: () => undefined,
    unreachable: () => undefined,
    sessionEnded: () => undefined,
    tokenRefused: async () => {
      if (renewed) setCsrfToken(renewed);
      return renewed !== null;
    },
  });
}

describe("a request whose CSRF token is refused", () => {
  it("is sent once more with the new token", async () => {
    listen("new");
    answers.push(refused(), answer(202, { id: "c1" }));
    expect(await post("/api/control/kill-switch", {})).toEqual({ id: "c1" });
    expect(tokens).toEqual(["old", "new"]);
  });

  it("fails if the new token is refused too", async () => {
    listen("new");
    answers.push(refused(), refused());
    await expect(post("/api/control/kill-switch", {})).rejects.toThrow("wrong token");
    expect(tokens).toEqual(["old", "new"]);
  });

  it("fails if the session has no other token", async () => {
    listen(null);
    answers.push(refused());
    await expect(post("/api/control/kill-switch", {})).rejects.toThrow("wrong token");
    expect(tokens).toEqual(["old"]);
  });
});

describe("signing out", () => {
  it("says so if the session goes on", async () => {
    session.phase = "ready";
    answers.push(answer(503, { code: "accounts_unavailable", detail: "Redis is away" }));
    await session.signOut();
    expect([session.phase, session.signOutError]).toEqual(["ready", "You are still signed in: Redis is away"]);
    for (const ended of [new Response(null, { status: 204 }), answer(401, { code: "session_ended", detail: "ended" })]) {
      session.phase = "ready";
      answers.push(ended);
      await session.signOut();
      expect([session.phase, session.signOutError]).toEqual(["signed-out", null]);
    }
  });
});
