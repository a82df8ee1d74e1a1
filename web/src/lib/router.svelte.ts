/** The URL is the state of the page: what is shown is a function of path and query. */

import { parse, type Route } from "./routes";

class Router {
  path = $state(window.location.pathname);
  query = $state.raw(new URLSearchParams(window.location.search));
  route: Route = $derived(parse(this.path));

  constructor() {
    window.addEventListener("popstate", () => this.#read());
    document.addEventListener("click", (event) => this.#follow(event));
  }

  #read(): void {
    this.path = window.location.pathname;
    this.query = new URLSearchParams(window.location.search);
  }

  go(href: string, options: { replace?: boolean } = {}): void {
    if (options.replace === true) window.history.replaceState(null, "", href);
    else window.history.pushState(null, "", href);
    const moved = this.path !== window.location.pathname;
    this.#read();
    if (moved) window.scrollTo(0, 0);
  }

  /** This page with some query parameters changed; null removes one. */
  with(changes: Record<string, string | null>): string {
    const query = new URLSearchParams(this.query);
    for (const [key, value] of Object.entries(changes)) {
      if (value === null || value === "") query.delete(key);
      else query.set(key, value);
    }
    const text = query.toString().replaceAll("%2C", ",").replaceAll("%3A", ":");
    return text === "" ? this.path : `${this.path}?${text}`;
  }

  set(changes: Record<string, string | null>, options: { replace?: boolean } = {}): void {
    this.go(this.with(changes), options);
  }

  get(key: string): string | null {
    return this.query.get(key);
  }

  /** Links inside the page stay in it; those with a modifier, a target or another origin do not. */
  #follow(event: MouseEvent): void {
    if (event.defaultPrevented || event.button !== 0) return;
    if (event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
    const link = event.target instanceof Element ? event.target.closest("a[href]") : null;
    if (!(link instanceof HTMLAnchorElement)) return;
    if (link.target !== "" || link.hasAttribute("download") || link.origin !== location.origin)
      return;
    if (link.pathname.startsWith("/api/")) return;
    event.preventDefault();
    this.go(link.pathname + link.search + link.hash);
  }
}

export const router = new Router();
