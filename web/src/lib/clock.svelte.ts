/**
 * One clock for every relative time on the page. It follows the server's: a countdown
 * to a retry must not be wrong by the error of the laptop's clock.
 */
const TICK_MS = 1_000;
/** The Date header has a resolution of one second: smaller differences are noise. */
const TOLERANCE_MS = 2_000;

class Clock {
  /** Milliseconds since the epoch by the server's clock, renewed every second. */
  now = $state(Date.now());
  #skew = 0;

  constructor() {
    setInterval(() => this.tick(), TICK_MS);
    document.addEventListener("visibilitychange", () => this.tick());
  }

  tick(): void {
    this.now = this.precise();
  }

  /** The present moment without waiting for the next tick. */
  precise(): number {
    return Date.now() + this.#skew;
  }

  observe(date: string | null): void {
    if (date === null) return;
    const skew = Date.parse(date) - Date.now();
    if (Number.isNaN(skew)) return;
    this.#skew = Math.abs(skew) > TOLERANCE_MS ? skew : 0;
  }
}

export const clock = new Clock();
