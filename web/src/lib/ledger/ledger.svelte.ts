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
  /** Pages the reader has opened; each look reads them all. */
  #pages = 1;
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

  more(): void {
    this.#pages += 1;
    this.look();
  }

  async #look(): Promise<boolean> {
    this.#looks += 1;
    try {
      const items: EventDeliveries[] = [];
      let cursor: string | null = null;
      for (let n = 0; n < this.#pages; n += 1) {
        const page: DeliveriesPage = await this.#fetch(cursor);
        items.push(...page.items);
        cursor = page.next_cursor ?? null;
        if (cursor === null) break;
      }
      if (this.#stopped) return true;
      this.items = inOrder(items);
      this.nextCursor = cursor;
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
}
