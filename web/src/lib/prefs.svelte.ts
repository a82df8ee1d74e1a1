/** What the reader chose for this browser: theme and time zone. */
export type Theme = "auto" | "light" | "dark";
export type Zone = "local" | "utc";

const KEY = "event-gateway.prefs";

class Prefs {
  theme = $state<Theme>("auto");
  zone = $state<Zone>("local");

  constructor() {
    try {
      const kept = JSON.parse(localStorage.getItem(KEY) ?? "{}") as Record<string, unknown>;
      if (kept["theme"] === "light" || kept["theme"] === "dark") this.theme = kept["theme"];
      if (kept["zone"] === "utc") this.zone = "utc";
    } catch {
      // Storage is off or holds something else: the defaults are good.
    }
    this.#show();
  }

  set(change: { theme?: Theme; zone?: Zone }): void {
    if (change.theme !== undefined) this.theme = change.theme;
    if (change.zone !== undefined) this.zone = change.zone;
    this.#show();
    try {
      localStorage.setItem(KEY, JSON.stringify({ theme: this.theme, zone: this.zone }));
    } catch {
      // Storage is off: the choice lasts as long as the page.
    }
  }

  #show(): void {
    const root = document.documentElement;
    if (this.theme === "auto") delete root.dataset["theme"];
    else root.dataset["theme"] = this.theme;
  }
}

export const prefs = new Prefs();
