/** Where a reader is in a channel, and which events it has already had. Pure. */

export type Step = "next" | "repeat" | "hole";

/** The offset of one channel. Offsets are gap-free, so a jump means that something is missing. */
export class Cursor {
  offset: number | null;

  constructor(offset: number | null = null) {
    this.offset = offset;
  }

  /** Judges an offset without moving; before the first one every offset is the next. */
  judge(offset: number): Step {
    if (this.offset === null || offset === this.offset + 1) return "next";
    return offset <= this.offset ? "repeat" : "hole";
  }

  /** Moves forward, never back. */
  advance(offset: number): void {
    if (this.offset === null || offset > this.offset) this.offset = offset;
  }
}

/** Remembers the newest `limit` ids: the same event reaches a page over two channels. */
export class Seen {
  readonly #ids = new Set<string>();
  readonly #limit: number;

  constructor(limit: number) {
    this.#limit = limit;
  }

  /** True the first time an id is given. */
  first(id: string): boolean {
    if (this.#ids.has(id)) return false;
    this.#ids.add(id);
    if (this.#ids.size > this.#limit) {
      const oldest = this.#ids.values().next();
      if (oldest.done !== true) this.#ids.delete(oldest.value);
    }
    return true;
  }
}
