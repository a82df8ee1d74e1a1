/** The jobs list: pages from REST, rows kept up to date live, new rows counted and not pushed in. */
import { api, body } from "../api/client";
import { asApiError, type ApiError } from "../api/problem";
import type { Job, JobSummary } from "../api/types";
import { clock } from "../clock.svelte";
import { live } from "../live/live.svelte";
import { poll, reach } from "../live/poll.svelte";
import type { Gap, JobUpdate, Snapshot } from "../live/protocol";
import { session } from "../session.svelte";
import { applyUpdate, isOpen, isProgressOnly } from "./apply";
import { mayMatch, toQuery, type Filters } from "./filters";

const PAGE = 50;
/** With the line up, polling only corrects; without it, polling is all there is. */
const POLL_OFFLINE_MS = 5_000;
/** Others' jobs have no common room, so whoever sees them all asks for new ones. */
const POLL_ALL_MS = 5_000;
const SUMMARY_DELAY_MS = 1_000;
const REFETCH_DELAY_MS = 150;
/** The server allows 100 rooms a socket; the job page needs one too. */
const ROOMS_AT_MOST = 90;

export interface Row {
  job: Job;
  /** Counts the live changes, so that the same highlight can start again. */
  flash: number;
}

export class JobList {
  rows = $state.raw<Row[]>([]);
  loading = $state(true);
  loadingMore = $state(false);
  problem = $state.raw<ApiError | null>(null);
  nextCursor = $state<string | null>(null);
  /** Ids of jobs that came after the list was read. */
  waiting = $state.raw<ReadonlySet<string>>(new Set());
  summary = $state.raw<JobSummary | null>(null);
  readAt = $state<number | null>(null);
  gap = $state.raw<Gap | null>(null);

  readonly stale = $derived(this.problem !== null && this.rows.length > 0);

  #filters: Filters;
  #generation = 0;
  #rooms = new Map<string, () => void>();
  #refetch = new Set<string>();
  #refetchTimer: ReturnType<typeof setTimeout> | null = null;
  #summaryTimer: ReturnType<typeof setTimeout> | null = null;
  #stops: (() => void)[] = [];
  /** What came while the first page was on its way; null when none is. */
  #early: (JobUpdate | Snapshot)[] | null = [];

  constructor(filters: Filters) {
    this.#filters = filters;
    this.#stops.push(
      live.listen({
        update: (u) => this.#update(u),
        gap: (g) => {
          if (g.channel.startsWith("user:")) this.gap = g;
        },
        snapshot: (s) => this.#snapshot(s),
        caughtUp: () => this.#look.now(),
      }),
    );
    void this.load();
  }

  /** Corrects rows in place and counts new ones; never moves what is being read. */
  #look = poll(
    () => {
      if (live.state !== "live") return POLL_OFFLINE_MS;
      return session.seesAll ? POLL_ALL_MS : null;
    },
    () => this.#peek(),
  );

  stop(): void {
    this.#generation += 1;
    this.#look.stop();
    for (const stop of this.#stops) stop();
    for (const leave of this.#rooms.values()) leave();
    this.#rooms.clear();
    if (this.#refetchTimer !== null) clearTimeout(this.#refetchTimer);
    if (this.#summaryTimer !== null) clearTimeout(this.#summaryTimer);
  }

  /** Other filters mean another list: the rows stay, greyed, until the answer is there. */
  filter(filters: Filters): void {
    this.#filters = filters;
    void this.load();
  }

  /** Reads the first page and shows it as it is. */
  async load(): Promise<void> {
    const generation = ++this.#generation;
    this.loading = true;
    this.#early = [];
    try {
      const page = await body(
        api.GET("/api/v1/jobs", {
          params: { query: { ...toQuery(this.#filters, clock.precise()), limit: PAGE } },
        }),
      );
      if (generation !== this.#generation) return;
      const before = new Map(this.rows.map((r) => [r.job.id, r]));
      this.rows = page.items.map((job) => ({ job, flash: before.get(job.id)?.flash ?? 0 }));
      this.nextCursor = page.next_cursor ?? null;
      this.waiting = new Set();
      this.problem = null;
      this.gap = null;
      this.readAt = clock.precise();
      reach.ok();
    } catch (thrown) {
      if (generation !== this.#generation) return;
      this.#failed(asApiError(thrown));
    }
    this.loading = false;
    // What arrived while the page was on its way may be newer than it.
    const early = this.#early ?? [];
    this.#early = null;
    for (const each of early) {
      if ("event_id" in each) this.#update(each);
      else this.#snapshot(each);
    }
    this.#watchRows();
    void this.#readSummary();
  }

  async more(): Promise<void> {
    if (this.nextCursor === null || this.loadingMore) return;
    const generation = this.#generation;
    this.loadingMore = true;
    try {
      const page = await body(
        api.GET("/api/v1/jobs", {
          params: {
            query: {
              ...toQuery(this.#filters, clock.precise()),
              limit: PAGE,
              cursor: this.nextCursor,
            },
          },
        }),
      );
      if (generation === this.#generation) {
        const have = new Set(this.rows.map((r) => r.job.id));
        const fresh = page.items.filter((job) => !have.has(job.id));
        this.rows = [...this.rows, ...fresh.map((job) => ({ job, flash: 0 }))];
        this.nextCursor = page.next_cursor ?? null;
        this.#watchRows();
      }
    } catch (thrown) {
      if (generation === this.#generation) this.#failed(asApiError(thrown));
    }
    this.loadingMore = false;
  }

  /** Puts the server's newer row in the place of the old one. */
  #put(job: Job): void {
    let changed = false;
    this.rows = this.rows.map((row) => {
      if (row.job.id !== job.id || Date.parse(job.updated_at) < Date.parse(row.job.updated_at))
        return row;
      const differs = row.job.status !== job.status || row.job.attempt !== job.attempt;
      changed = true;
      return { job, flash: differs ? row.flash + 1 : row.flash };
    });
    if (changed && !isOpen(job)) this.#leave(job.id);
  }

  replace(job: Job): void {
    this.#put(job);
    this.#summarySoon();
  }

  async #peek(): Promise<boolean> {
    const generation = this.#generation;
    try {
      const page = await body(
        api.GET("/api/v1/jobs", {
          params: { query: { ...toQuery(this.#filters, clock.precise()), limit: PAGE } },
        }),
      );
      reach.ok();
      if (generation !== this.#generation) return true;
      this.problem = null;
      this.readAt = clock.precise();
      const shown = new Map(this.rows.map((r) => [r.job.id, r]));
      const fresh = page.items.filter((j) => !shown.has(j.id) && this.#isNewer(j));
      for (const job of page.items) if (shown.has(job.id)) this.#put(job);
      this.#count(fresh.map((j) => j.id));
      // Open rows beyond the first page are asked for one by one.
      const answered = new Set(page.items.map((j) => j.id));
      for (const { job } of this.rows)
        if (isOpen(job) && !answered.has(job.id)) this.#refetchSoon(job.id);
      if (live.state !== "live" || fresh.length > 0) void this.#readSummary();
      return true;
    } catch (thrown) {
      if (generation === this.#generation) this.#failed(asApiError(thrown));
      return false;
    }
  }

  #failed(problem: ApiError): void {
    this.problem = problem;
    if (problem.unreachable) reach.failed();
  }

  #count(ids: string[]): void {
    const fresh = ids.filter((id) => !this.waiting.has(id));
    if (fresh.length === 0) return;
    // An empty list has nobody's place to keep.
    if (this.rows.length === 0 && !this.loading) void this.load();
    else this.waiting = new Set([...this.waiting, ...fresh]);
  }

  #update(update: JobUpdate): void {
    if (this.#early !== null) {
      this.#early.push(update);
      return;
    }
    const row = this.rows.find((r) => r.job.id === update.job_id);
    if (row === undefined) {
      if (update.type === "job.submitted") this.#submitted(update);
      return;
    }
    const job = applyUpdate(row.job, update);
    if (job !== row.job) {
      const quiet = isProgressOnly(row.job, update);
      this.rows = this.rows.map((r) =>
        r === row ? { job, flash: quiet ? r.flash : r.flash + 1 } : r,
      );
      if (!quiet) {
        this.#refetchSoon(job.id);
        this.#summarySoon();
      }
    }
  }

  #submitted(update: JobUpdate): void {
    const d = update.data;
    const job = {
      agent: String(d["agent"] ?? ""),
      user_id: update.user_id,
      tacc_system: String(d["tacc_system"] ?? "other") as Job["tacc_system"],
      name: String(d["job_name"] ?? ""),
    };
    if (mayMatch(this.#filters, job)) this.#count([update.job_id]);
    this.#summarySoon();
  }

  /** The state of one job, or of the user's newest: rows are corrected, newer ones counted. */
  #snapshot(snapshot: Snapshot): void {
    if (this.#early !== null) {
      this.#early.push(snapshot);
      return;
    }
    const shown = new Set(this.rows.map((r) => r.job.id));
    for (const job of [...(snapshot.jobs ?? []), ...(snapshot.job == null ? [] : [snapshot.job])])
      if (shown.has(job.id)) this.#put(job);
    const fresh = (snapshot.jobs ?? []).filter(
      (job) => !shown.has(job.id) && this.#isNewer(job) && mayMatch(this.#filters, job, job.status),
    );
    this.#count(fresh.map((job) => job.id));
    this.#summarySoon();
  }

  /** Newer than every row: what is older is further down, on a page not yet read. */
  #isNewer(job: Job): boolean {
    const at = Date.parse(job.created_at);
    return this.rows.every((r) => Date.parse(r.job.created_at) <= at);
  }

  /** A row changed more than an event tells: the server's own row follows, a few at a time. */
  #refetchSoon(id: string): void {
    this.#refetch.add(id);
    this.#refetchTimer ??= setTimeout(() => {
      this.#refetchTimer = null;
      const ids = [...this.#refetch].slice(0, 8);
      for (const each of ids) this.#refetch.delete(each);
      void Promise.all(
        ids.map(async (each) => {
          try {
            this.#put(await body(api.GET("/api/v1/jobs/{id}", { params: { path: { id: each } } })));
          } catch {
            // The next event, poll or reload corrects it.
          }
        }),
      ).then(() => {
        const rest = [...this.#refetch][0];
        if (rest !== undefined) this.#refetchSoon(rest);
      });
    }, REFETCH_DELAY_MS);
  }

  #summarySoon(): void {
    this.#summaryTimer ??= setTimeout(() => {
      this.#summaryTimer = null;
      void this.#readSummary();
    }, SUMMARY_DELAY_MS);
  }

  async #readSummary(): Promise<void> {
    try {
      // The counts are by status, so that filter does not narrow them.
      const query = toQuery({ ...this.#filters, status: [] }, clock.precise());
      this.summary = await body(api.GET("/api/v1/jobs/summary", { params: { query } }));
    } catch {
      // The counts stay as they were; the list itself shows the problem.
    }
  }

  /** One's own jobs come over the user's room; others' open ones need their own. */
  #watchRows(): void {
    if (!session.seesAll) return;
    const wanted = this.rows
      .filter((r) => isOpen(r.job) && r.job.user_id !== session.me?.user_id)
      .slice(0, ROOMS_AT_MOST)
      .map((r) => r.job.id);
    for (const id of [...this.#rooms.keys()]) if (!wanted.includes(id)) this.#leave(id);
    for (const id of wanted) if (!this.#rooms.has(id)) this.#rooms.set(id, live.join(id, null));
  }

  #leave(id: string): void {
    this.#rooms.get(id)?.();
    this.#rooms.delete(id);
  }
}
