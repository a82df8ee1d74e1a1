/**
 * Polling, for when there is no socket and for what the socket does not carry. It pauses in
 * hidden tabs and slows down when the gateway does not answer.
 */
import { clock } from "../clock.svelte";

const SLOWEST_MS = 30_000;

class Reach {
  /** When REST last answered, and since when it does not; by the server's clock. */
  answeredAt = $state<number | null>(null);
  failingSince = $state<number | null>(null);

  ok(): void {
    this.answeredAt = clock.precise();
    this.failingSince = null;
  }

  failed(): void {
    this.failingSince ??= clock.precise();
  }
}

/** Whether REST answers: with the socket away, the difference between polling and offline. */
export const reach = new Reach();

/**
 * Calls `work` every `every()` milliseconds, never twice at once; null pauses. `work` resolves
 * to false when the gateway did not answer. Returns how to stop, and how to run it at once.
 */
export function poll(
  every: () => number | null,
  work: () => Promise<boolean>,
): { stop: () => void; now: () => void } {
  let timer: ReturnType<typeof setTimeout> | null = null;
  let running = false;
  let again = false;
  let stopped = false;
  let failures = 0;

  const plan = () => {
    if (timer !== null) clearTimeout(timer);
    timer = null;
    const pause = every();
    if (stopped) return;
    // Even when paused, look again soon: the reason for the pause may have gone.
    const wait = pause === null ? 1_000 : Math.min(pause * 2 ** Math.min(failures, 4), Math.max(pause, SLOWEST_MS));
    timer = setTimeout(() => (every() === null || document.hidden ? plan() : void run()), wait);
  };

  const run = async () => {
    if (stopped) return;
    if (running) {
      again = true;
      return;
    }
    running = true;
    do {
      again = false;
      failures = (await work()) ? 0 : failures + 1;
    } while (again && !stopped && failures === 0);
    running = false;
    plan();
  };

  const shown = () => {
    if (!document.hidden && every() !== null) void run();
  };
  document.addEventListener("visibilitychange", shown);
  plan();
  return {
    stop: () => {
      stopped = true;
      if (timer !== null) clearTimeout(timer);
      document.removeEventListener("visibilitychange", shown);
    },
    now: () => void run(),
  };
}
