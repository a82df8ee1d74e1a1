/** The ledger of one job or one event, read again while something in it may still move. */
import { asApiError, type ApiError } from "../api/problem";
import type { DeliveriesPage, EventDeliveries } from "../api/types";
import { clock } from "../clock.svelte";
import { poll, reach } from "../live/poll.svelte";
import { inOrder, moving, tally } from "./legs";

const SOON_MS = 700;
const LATER_MS = 5_000;
/** A leg still open after so many looks is waiting for something longer. */
const PATIENT_LOOKS = 20;

export class LedgerView {
  items = $state.raw<EventDeliveries[]>([]);
  problem = $state.raw<ApiError | null>(null);
  read = $state(false);
  readAt = $state<number | null>(null);
  nextCursor = $state<string | null>(null);
  readonly tally = $derived(tally(this.items));

  #fetch: (cursor: string | null) => Promise<DeliveriesPage>;
  #poll: { stop: () => void; now: () => void };
  #looks = 0;
  #stopped = false;

  /** `open` says whether new events may still come. */
  constructor(fetch: (cursor: string | null) => Promise<DeliveriesPage>, open: () => boolean) {
    this.#fetch = fetch;
    this.#poll = poll(
      () => {
        if (this.problem !== null) return LATER_MS;
        if (!this.read) return SOON_MS;
        if (moving(this.tally)) return this.#looks < PATIENT_LOOKS ? SOON_MS : LATER_MS;
        return open() ? LATER_MS : null;
      },
      () => this.#look(),
    );
    this.#poll.now();
  }

  stop(): void {
    this.#stopped = true;
    this.#poll.stop();
  }

  /** Something has happened that has legs: look again at once. */
  look(): void {
    this.#looks = 0;
    this.#poll.now();
  }

  async more(): Promise<void> {
    if (this.nextCursor === null) return;
    try {
      const page = await this.#fetch(this.nextCursor);
      if (this.#stopped) return;
      this.#take(page.items);
      this.nextCursor = page.next_cursor ?? null;
    } catch (thrown) {
      this.problem = asApiError(thrown);
    }
  }

  async #look(): Promise<boolean> {
    this.#looks += 1;
    try {
      const page = await this.#fetch(null);
      if (this.#stopped) return true;
      const before = this.items.length;
      this.#take(page.items);
      if (before <= page.items.length) this.nextCursor = page.next_cursor ?? null;
      this.problem = null;
      this.read = true;
      this.readAt = clock.precise();
      reach.ok();
      return true;
    } catch (thrown) {
      if (this.#stopped) return false;
      this.problem = asApiError(thrown);
      if (this.problem.unreachable) reach.failed();
      return false;
    }
  }

  #take(items: EventDeliveries[]): void {
    const byId = new Map(this.items.map((i) => [i.event_id, i]));
    for (const item of items) byId.set(item.event_id, item);
    this.items = inOrder([...byId.values()]);
  }
}
