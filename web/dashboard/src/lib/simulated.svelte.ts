// Whether simulated events are among the newest ones: then every page says so.
import { get, type Page } from "./api";
import { poll } from "./resource.svelte";
import { session } from "./session.svelte";

const TYPES = ["opportunity", "bundle", "tick"];
const EVERY_MS = 10_000;

async function isSimulated(signal: AbortSignal): Promise<boolean> {
  if (!session.may("events:read")) return false;
  const newest = await Promise.all(TYPES.map((type) => get<Page<{ simulated?: boolean }>>(`/api/events/${type}?limit=1`, signal)));
  return newest.some((page) => page.items.some((event) => event.simulated));
}

/** Look while somebody is signed in; call during a component's setup. */
export const watchSimulated = () => poll((signal) => (session.phase === "ready" ? isSimulated(signal) : Promise.resolve(false)), EVERY_MS);
