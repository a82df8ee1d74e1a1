/**
 * One job as the page shows it. History comes over REST, then the room is joined from the
 * last offset read, so that nothing lies between; without the line the same is polled.
 */
import { api, body } from "../api/client";
import { asApiError, type ApiError } from "../api/problem";
import type { Job, Sample } from "../api/types";
import { clock } from "../clock.svelte";
import { live } from "../live/live.svelte";
import { poll, reach } from "../live/poll.svelte";
import type { Gap, JobUpdate, Snapshot, TelemetryUpdate } from "../live/protocol";
import { applyUpdate, isOpen, isProgressOnly } from "./apply";
import { fromEvent, fromUpdate, merge, openGaps, type TimelineEvent } from "./timeline";

const EVENTS_PAGE = 500;
/** Longer histories are read on demand. */
const EVENTS_PAGES = 10;
const POLL_MS = 3_000;
const REFETCH_DELAY_MS = 150;
const SAMPLES_AT_MOST = 20_000;

export class JobView {
  readonly id: string;
  job = $state.raw<Job | null>(null);
  events = $state.raw<TimelineEvent[]>([]);
  eventsRead = $state(false);
  /** More events than were read: the timeline says so and offers the rest. */
  moreEvents = $state(false);
  gaps = $state.raw<Gap[]>([]);
  samples = $state.raw<Sample[]>([]);
  samplesRead = $state(false);
  samplesProblem = $state.raw<ApiError | null>(null);
  problem = $state.raw<ApiError | null>(null);
  eventsProblem = $state.raw<ApiError | null>(null);
  readAt = $state<number | null>(null);
  /** Grows with each thing that may have changed a leg. */
  changes = $state(0);

  #stopped = false;
  #leave: (() => void) | null = null;
  #unlisten: () => void;
  #poll: { stop: () => void; now: () => void };
  #refetchTimer: ReturnType<typeof setTimeout> | null = null;

  constructor(id: string) {
    this.id = id;
    this.#unlisten = live.listen({
      job: id,
      update: (u) => this.#update(u),
      telemetry: (t) => this.#telemetry(t),
      gap: (g) => this.#gap(g),
      snapshot: (s) => this.#snapshot(s),
      caughtUp: () => this.#caughtUp(),
    });
    this.#poll = poll(
      () => (live.state === "live" || (this.job !== null && !isOpen(this.job)) ? null : POLL_MS),
      () => this.#refresh(),
    );
    void this.#start();
  }

  stop(): void {
    this.#stopped = true;
    this.#leave?.();
    this.#unlisten();
    this.#poll.stop();
    if (this.#refetchTimer !== null) clearTimeout(this.#refetchTimer);
  }

  retry(): void {
    void this.#start();
  }

  /** The server's answer to something the user did here. */
  take(job: Job): void {
    if (this.job === null || Date.parse(job.updated_at) >= Date.parse(this.job.updated_at))
      this.job = job;
    this.changes += 1;
  }

  async #start(): Promise<void> {
    await Promise.all([this.#readJob(), this.readEvents(EVENTS_PAGES)]);
    if (this.#stopped || this.job === null || this.#leave !== null) return;
    const last = this.events.reduce<number>((max, e) => Math.max(max, e.offset ?? 0), 0);
    // With unread pages the offset would be far behind and the answer a snapshot: start at the head.
    this.#leave = live.join(this.id, this.moreEvents || last === 0 ? null : last);
  }

  async #readJob(): Promise<boolean> {
    try {
      const job = await body(api.GET("/api/v1/jobs/{id}", { params: { path: { id: this.id } } }));
      if (this.#stopped) return true;
      this.problem = null;
      this.readAt = clock.precise();
      reach.ok();
      if (this.job === null || Date.parse(job.updated_at) >= Date.parse(this.job.updated_at))
        this.job = job;
      return true;
    } catch (thrown) {
      if (this.#stopped) return false;
      this.problem = asApiError(thrown);
      if (this.problem.unreachable) reach.failed();
      return false;
    }
  }

  /** Reads the events after the newest one known, up to `pages` pages. */
  async readEvents(pages = EVENTS_PAGES): Promise<boolean> {
    try {
      let after = this.events.reduce<number>(
        (max, e) => (e.aggregate === "job" ? Math.max(max, e.sequence) : max),
        0,
      );
      // After a gap the newest known event is beyond what is missing: start before the gap.
      for (const gap of this.gaps) after = Math.min(after, gap.from);
      for (let n = 0; n < pages; n += 1) {
        const page = await body(
          api.GET("/api/v1/jobs/{id}/events", {
            params: { path: { id: this.id }, query: { after, limit: EVENTS_PAGE } },
          }),
        );
        if (this.#stopped) return true;
        this.events = merge(this.events, page.items.map(fromEvent));
        this.moreEvents = page.next_cursor != null;
        const reached = page.items.reduce(
          (max, e) => (e.aggregate_type === "job" ? Math.max(max, e.sequence) : max),
          after,
        );
        if (!this.moreEvents || reached === after) break;
        after = reached;
      }
      this.eventsRead = true;
      this.eventsProblem = null;
      this.gaps = openGaps(this.events, this.gaps);
      return true;
    } catch (thrown) {
      if (!this.#stopped) this.eventsProblem = asApiError(thrown);
      return false;
    }
  }

  async readSamples(): Promise<void> {
    try {
      const series = await body(
        api.GET("/api/v1/jobs/{id}/metrics", { params: { path: { id: this.id }, query: {} } }),
      );
      if (this.#stopped) return;
      // The series is averaged over steps; live samples go on from where it ends.
      const end = Date.parse(series.items.at(-1)?.t ?? "") + series.step_seconds * 1_000;
      const newer = this.samples.filter((s) => !(Date.parse(s.t) < end));
      this.samples = joinSamples(series.items, newer);
      this.samplesProblem = null;
    } catch (thrown) {
      if (this.#stopped) return;
      this.samplesProblem = asApiError(thrown);
    }
    this.samplesRead = true;
  }

  async #refresh(): Promise<boolean> {
    const [job, events] = await Promise.all([this.#readJob(), this.readEvents(EVENTS_PAGES)]);
    this.changes += 1;
    if (this.samplesRead && live.state !== "live") void this.readSamples();
    return job && events;
  }

  /** The line has brought every missed event. What it does not repeat is read: row and samples. */
  #caughtUp(): void {
    this.changes += 1;
    void this.#readJob();
    if (this.samplesRead) void this.readSamples();
  }

  #update(update: JobUpdate): void {
    this.events = merge(this.events, [fromUpdate(update)]);
    this.changes += 1;
    if (this.job === null) return;
    const quiet = isProgressOnly(this.job, update);
    this.job = applyUpdate(this.job, update);
    if (!quiet) this.#refetchSoon();
  }

  #telemetry(sample: TelemetryUpdate): void {
    if (!this.samplesRead) return;
    const read = sampleFrom(sample);
    if (read !== null) this.samples = joinSamples(this.samples, [read]);
  }

  #gap(gap: Gap): void {
    if (gap.channel === `job:${this.id}`) this.gaps = openGaps(this.events, [...this.gaps, gap]);
  }

  #snapshot(snapshot: Snapshot): void {
    if (snapshot.job != null) this.take(snapshot.job);
    else this.#refetchSoon();
  }

  #refetchSoon(): void {
    this.#refetchTimer ??= setTimeout(() => {
      this.#refetchTimer = null;
      void this.#readJob();
    }, REFETCH_DELAY_MS);
  }
}

function sampleFrom(update: TelemetryUpdate): Sample | null {
  const ms = Date.parse(update.data.sample_timestamp ?? update.timestamp);
  if (!Number.isFinite(ms)) return null;
  return { ...update.data.metrics, t: new Date(ms).toISOString() } as unknown as Sample;
}

function joinSamples(a: Sample[], b: Sample[]): Sample[] {
  const byTime = new Map<number, Sample>();
  for (const s of [...a, ...b]) byTime.set(Date.parse(s.t), s);
  return [...byTime.entries()]
    .sort(([x], [y]) => x - y)
    .slice(-SAMPLES_AT_MOST)
    .map(([, s]) => s);
}
