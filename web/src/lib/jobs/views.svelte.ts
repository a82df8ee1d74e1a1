/** Filters that the reader gave a name; kept in this browser. */
const KEY = "event-gateway.views";
const AT_MOST = 20;

export interface View {
  name: string;
  /** The query of the URL, without the question mark. */
  query: string;
}

class Views {
  items = $state.raw<View[]>(read());

  /** A name that is there already gets the new filters. */
  save(name: string, query: string): void {
    const others = this.items.filter((v) => v.name !== name);
    this.#keep([...others, { name, query }].slice(-AT_MOST));
  }

  remove(name: string): void {
    this.#keep(this.items.filter((v) => v.name !== name));
  }

  #keep(items: View[]): void {
    this.items = items;
    try {
      localStorage.setItem(KEY, JSON.stringify(items));
    } catch {
      // Storage is off: they last as long as the page.
    }
  }
}

function read(): View[] {
  try {
    const kept: unknown = JSON.parse(localStorage.getItem(KEY) ?? "[]");
    return Array.isArray(kept) ? kept.filter(isView) : [];
  } catch {
    return [];
  }
}

function isView(value: unknown): value is View {
  const v = value as Partial<View> | null;
  return typeof v?.name === "string" && typeof v.query === "string";
}

export const views = new Views();
