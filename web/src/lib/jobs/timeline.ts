/** The events of a job as a story: one chapter per attempt, progress folded into one line. Pure. */
import type { GatewayEvent } from "../api/types";
import { duration, percent } from "../format";
import type { Gap, JobUpdate } from "../live/protocol";

/** What both the REST history and the live line say about an event. */
export interface TimelineEvent {
  id: string;
  type: string;
  at: number;
  aggregate: string;
  sequence: number;
  /** Position in the job's channel; null for events that no channel carries. */
  offset: number | null;
  payload: Record<string, unknown>;
  correlation: string | null;
  causation: string | null;
  /** True for what came over the live line while the page was open. */
  live: boolean;
}

export function fromEvent(event: GatewayEvent): TimelineEvent {
  const aggregateId = event.aggregate_id;
  return {
    id: event.event_id,
    type: event.event_type,
    at: Date.parse(event.occurred_at),
    aggregate: event.aggregate_type,
    sequence: event.sequence,
    offset: event.offsets[`job:${aggregateId}`] ?? null,
    payload: event.payload as Record<string, unknown>,
    correlation: event.correlation_id,
    causation: event.causation_id ?? null,
    live: false,
  };
}

export function fromUpdate(update: JobUpdate): TimelineEvent {
  return {
    id: update.event_id,
    type: update.type,
    at: Date.parse(update.timestamp),
    aggregate: "job",
    sequence: update.sequence,
    offset: update.channel.startsWith("job:") ? update.offset : null,
    payload: update.data,
    correlation: null,
    causation: null,
    live: true,
  };
}

/** Both lists as one, each event once, in order; what REST knows about an event is kept. */
export function merge(have: TimelineEvent[], more: TimelineEvent[]): TimelineEvent[] {
  if (more.length === 0) return have;
  const byId = new Map(have.map((e) => [e.id, e]));
  for (const event of more) {
    const known = byId.get(event.id);
    if (known === undefined) byId.set(event.id, event);
    else if (!event.live) byId.set(event.id, { ...event, live: known.live });
  }
  const all = [...byId.values()];
  const own = all.filter((e) => e.aggregate === "job").sort((a, b) => a.sequence - b.sequence);
  const others = all.filter((e) => e.aggregate !== "job").sort((a, b) => a.at - b.at || a.sequence - b.sequence);
  return zip(own, others);
}

/** The job's own events keep their sequence; others, whose sequence does not compare, go in by time. */
function zip(own: TimelineEvent[], others: TimelineEvent[]): TimelineEvent[] {
  const out: TimelineEvent[] = [];
  let next = 0;
  for (const event of own) {
    for (let other = others[next]; other !== undefined && other.at < event.at; other = others[next]) {
      out.push(other);
      next += 1;
    }
    out.push(event);
  }
  return [...out, ...others.slice(next)];
}

/** The gaps that the history has not filled meanwhile. */
export function openGaps(events: TimelineEvent[], gaps: Gap[]): Gap[] {
  if (gaps.length === 0) return gaps;
  const offsets = events.flatMap((e) => (e.offset === null ? [] : [e.offset]));
  return gaps.filter((gap) => {
    const there = new Set(offsets.filter((o) => o > gap.from && o <= gap.to));
    return there.size < gap.to - gap.from;
  });
}

export type Entry =
  | { kind: "event"; event: TimelineEvent }
  | { kind: "progress"; events: TimelineEvent[]; from: number | null; to: number | null }
  | { kind: "gap"; gap: Gap };

export interface Chapter {
  attempt: number;
  startedAt: number;
  endedAt: number | null;
  outcome: "open" | "completed" | "failed" | "cancelled";
  entries: Entry[];
}

/** Groups by attempt. An event that names none belongs to the attempt it stands in. */
export function chapters(events: TimelineEvent[], gaps: Gap[] = []): Chapter[] {
  const out: Chapter[] = [];
  const waiting = [...gaps].sort((a, b) => a.to - b.to);
  let current: Chapter | undefined;
  const chapterFor = (attempt: number, at: number): Chapter => {
    if (current === undefined || attempt > current.attempt) {
      current = { attempt, startedAt: at, endedAt: null, outcome: "open", entries: [] };
      out.push(current);
    }
    return current;
  };
  for (const event of events) {
    const named = event.payload["attempt"];
    const chapter = chapterFor(typeof named === "number" ? named : (current?.attempt ?? 1), event.at);
    while (waiting[0] !== undefined && event.offset !== null && event.offset > waiting[0].to) {
      chapter.entries.push({ kind: "gap", gap: waiting[0] });
      waiting.shift();
    }
    add(chapter, event);
  }
  if (waiting.length > 0) {
    const chapter = chapterFor(current?.attempt ?? 1, waiting[0]?.at ?? 0);
    for (const gap of waiting) chapter.entries.push({ kind: "gap", gap });
  }
  return out;
}

function add(chapter: Chapter, event: TimelineEvent): void {
  const outcome = OUTCOME[event.type];
  if (outcome !== undefined) {
    chapter.outcome = outcome;
    chapter.endedAt = event.at;
  }
  const last = chapter.entries.at(-1);
  if (isProgress(event)) {
    const to = progressOf(event);
    if (last?.kind === "progress") {
      chapter.entries[chapter.entries.length - 1] = {
        ...last,
        events: [...last.events, event],
        to: to ?? last.to,
      };
      return;
    }
    chapter.entries.push({ kind: "progress", events: [event], from: to, to });
    return;
  }
  chapter.entries.push({ kind: "event", event });
}

const OUTCOME: Record<string, Chapter["outcome"]> = {
  "job.completed": "completed",
  "job.failed": "failed",
  "job.cancelled": "cancelled",
};

export function isProgress(event: TimelineEvent): boolean {
  return (
    event.type === "job.status.changed" &&
    event.payload["new_status"] === "RUNNING" &&
    event.payload["previous_status"] === "RUNNING"
  );
}

function progressOf(event: TimelineEvent): number | null {
  const p = event.payload["progress"];
  return typeof p === "number" ? p : null;
}

/** One line for an event, in words. */
export function headline(event: Pick<TimelineEvent, "type" | "payload">): string {
  const p = event.payload;
  switch (event.type) {
    case "job.submitted":
      return "Submitted";
    case "SubmitJobRequested":
      return typeof p["runner"] === "string" ? `Command to the ${p["runner"]} runner` : "Command to the runner";
    case "CancelJobRequested":
      return "Command to cancel";
    case "job.status.changed":
      return statusLine(p);
    case "job.completed":
      return typeof p["execution_time_ms"] === "number"
        ? `Completed in ${duration(p["execution_time_ms"])}`
        : "Completed";
    case "job.failed":
      return `Failed: ${String(p["error_code"] ?? "unknown")}`;
    case "job.cancelled":
      return `Cancelled by ${String(p["cancelled_by"] ?? "unknown")}`;
    case "job.performance.summary":
      return "Performance summary";
    case "job.metrics.recorded":
      return "Sample";
    default:
      return event.type;
  }
}

function statusLine(p: Record<string, unknown>): string {
  const to = String(p["new_status"] ?? "");
  const progress = p["progress"];
  if (to === "RUNNING" && p["previous_status"] === "RUNNING")
    return typeof progress === "number" ? `Progress ${percent(progress)}` : "Progress";
  if (to === "RUNNING") return "Started";
  if (to === "") return "Status changed";
  if (to === "QUEUED") return p["previous_status"] === "FAILED" ? "Queued again" : "Queued";
  return `Status: ${to.toLowerCase()}`;
}

/** What an event adds beyond its headline, where that is worth a second line. */
export function remark(event: TimelineEvent): string | null {
  const p = event.payload;
  const value = p["reason"] ?? (event.type === "job.failed" ? p["error_message"] : null);
  return typeof value === "string" && value !== "" ? value : null;
}
