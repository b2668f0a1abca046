// What this browser remembers: theme, times, the explorer. Nothing secret is ever kept here.

export type Theme = "system" | "light" | "dark";
const EXPLORER = "https://solscan.io/tx/{signature}";

export function recalled(name: string): string | null {
  try {
    return localStorage.getItem(`mev.${name}`);
  } catch {
    return null; // a browser may forbid storage
  }
}

export function remember(name: string, value: string | null): void {
  try {
    if (value === null) localStorage.removeItem(`mev.${name}`);
    else localStorage.setItem(`mev.${name}`, value);
  } catch {
    // It then lasts until the page is closed.
  }
}

class Preferences {
  theme = $state<Theme>((["light", "dark"] as const).find((name) => name === recalled("theme")) ?? "system");
  utc = $state(recalled("utc") === "1");
  explorer = $state(recalled("explorer") ?? EXPLORER);
  /** Whether somebody was signed in here, so that a first visit asks the server nothing. */
  known = recalled("known") === "1";

  setTheme(theme: Theme): void {
    this.theme = theme;
    remember("theme", theme === "system" ? null : theme);
    this.applyTheme();
  }

  applyTheme(): void {
    if (this.theme === "system") delete document.documentElement.dataset["theme"];
    else document.documentElement.dataset["theme"] = this.theme;
  }

  setUtc(utc: boolean): void {
    this.utc = utc;
    remember("utc", utc ? "1" : null);
  }

  setExplorer(template: string): void {
    this.explorer = template || EXPLORER;
    remember("explorer", template && template !== EXPLORER ? template : null);
  }

  setKnown(known: boolean): void {
    this.known = known;
    remember("known", known ? "1" : null);
  }

  /** Return the address of a transaction at the explorer; null when the setting is no web address. */
  explorerUrl(signature: string): string | null {
    const address = this.explorer.replace("{signature}", encodeURIComponent(signature));
    return /^https?:\/\//.test(address) ? address : null;
  }
}

export const prefs = new Preferences();
