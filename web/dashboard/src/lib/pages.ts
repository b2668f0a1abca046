// The pages, in the order of the navigation, with the permission that each needs.
import type { Component } from "svelte";
import Live from "../pages/Live.svelte";

export interface PageEntry {
  readonly path: string;
  readonly title: string;
  readonly permission: string;
  readonly load: () => Promise<{ readonly default: Component }>;
}

export const PAGES: readonly PageEntry[] = [
  { path: "live", title: "Live", permission: "stream:read", load: async () => ({ default: Live }) },
  { path: "figures", title: "Figures", permission: "events:read", load: () => import("../pages/Figures.svelte") },
  { path: "fleet", title: "Fleet", permission: "agents:read", load: () => import("../pages/Fleet.svelte") },
  { path: "orders", title: "Orders", permission: "control:read", load: () => import("../pages/Orders.svelte") },
  { path: "jobs", title: "Jobs", permission: "datasets:read", load: () => import("../pages/Jobs.svelte") },
  { path: "models", title: "Models", permission: "models:read", load: () => import("../pages/Models.svelte") },
  { path: "audit", title: "Audit", permission: "audit:read", load: () => import("../pages/Audit.svelte") },
  { path: "health", title: "Health", permission: "metrics:read", load: () => import("../pages/Health.svelte") },
  { path: "access", title: "Access", permission: "self:read", load: () => import("../pages/Access.svelte") },
];
