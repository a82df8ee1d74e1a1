import { expect, it } from "vitest";
import type { GatewayEvent } from "../api/types";
import type { Gap } from "../live/protocol";
import { iso, JOB_ID } from "./fixtures";
import { chapters, fromEvent, fromUpdate, headline, merge, openGaps, type TimelineEvent } from "./timeline";

function event(sequence: number, type: string, payload: Record<string, unknown>, over: Partial<GatewayEvent> = {}) {
  return fromEvent({
    event_id: `${over.aggregate_type ?? "job"}-${sequence}`,
    event_type: type,
    occurred_at: iso(sequence * 1_000),
    correlation_id: JOB_ID,
    causation_id: null,
    aggregate_type: "job",
    aggregate_id: JOB_ID,
    sequence,
    user_id: "ada",
    schema_version: 1,
    tags: [],
    offsets: { [`job:${JOB_ID}`]: sequence },
    payload,
    ...over,
  } as GatewayEvent);
}
const status = (n: number, from: string, to: string, attempt: number, progress?: number) =>
  event(n, "job.status.changed", { previous_status: from, new_status: to, attempt, ...(progress === undefined ? {} : { progress }) });

const history: TimelineEvent[] = [
  event(1, "job.submitted", {}),
  status(2, "QUEUED", "RUNNING", 1, 0),
  status(3, "RUNNING", "RUNNING", 1, 0.2),
  status(4, "RUNNING", "RUNNING", 1, 0.6),
  event(5, "job.failed", { attempt: 1, error_code: "agent_error", error_message: "no signal" }),
  status(6, "FAILED", "QUEUED", 2),
  status(7, "QUEUED", "RUNNING", 2, 0),
  event(8, "job.completed", { attempt: 2, execution_time_ms: 1_500 }),
  event(9, "job.performance.summary", {}),
];

it("tells one chapter per attempt, progress folded, the summary in the attempt it follows", () => {
  const told = chapters(history);
  expect(told.map((c) => [c.attempt, c.outcome, c.entries.length])).toEqual([
    [1, "failed", 4],
    [2, "completed", 4],
  ]);
  expect(told[0]?.entries[2]).toMatchObject({ kind: "progress", from: 0.2, to: 0.6 });
});

it("merges live and read events: each once, in order, with what REST knows", () => {
  const live = fromUpdate({
    event_id: "job-2",
    type: "job.status.changed",
    job_id: JOB_ID,
    user_id: "ada",
    timestamp: iso(2_000),
    sequence: 2,
    channel: `job:${JOB_ID}`,
    offset: 2,
    data: {},
  });
  const merged = merge([live], history);
  expect(merged.map((e) => e.sequence)).toEqual([1, 2, 3, 4, 5, 6, 7, 8, 9]);
  expect(merged[1]).toMatchObject({ correlation: JOB_ID, live: true });
  expect(merge(merged, [live])[1]?.correlation).toBe(JOB_ID);
});

it("puts another aggregate's events in by time, after what caused them", () => {
  const command = event(1, "SubmitJobRequested", { attempt: 1, runner: "process" }, {
    aggregate_type: "job_command",
    occurred_at: iso(1_000),
    offsets: {},
  });
  expect(merge(history, [command]).slice(0, 3).map((e) => e.type)).toEqual([
    "job.submitted",
    "SubmitJobRequested",
    "job.status.changed",
  ]);
});

it("shows a gap where it happened", () => {
  const gap: Gap = { channel: `job:${JOB_ID}`, from: 2, to: 5, skipped: 3, at: 0 };
  const [first, second] = chapters([...history.slice(0, 2), ...history.slice(5)], [gap]);
  expect(first?.entries.map((e) => e.kind)).toEqual(["event", "event"]);
  expect(second?.entries.map((e) => e.kind)).toEqual(["gap", "event", "event", "event", "event"]);
  expect(chapters(history.slice(0, 2), [gap])[0]?.entries.at(-1)?.kind).toBe("gap");
});

it("forgets a gap that the history has filled", () => {
  const gap: Gap = { channel: `job:${JOB_ID}`, from: 2, to: 5, skipped: 3, at: 0 };
  expect(openGaps([...history.slice(0, 3), ...history.slice(5)], [gap])).toEqual([gap]);
  expect(openGaps(history, [gap])).toEqual([]);
});

it("says each event in words", () => {
  expect(history.map(headline)).toEqual([
    "Submitted",
    "Started",
    "Progress 20 %",
    "Progress 60 %",
    "Failed: agent_error",
    "Queued again",
    "Started",
    "Completed in 1.5 s",
    "Performance summary",
  ]);
});
