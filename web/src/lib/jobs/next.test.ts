import { expect, it } from "vitest";
import type { Job } from "../api/types";
import { iso, job, T0 } from "./fixtures";
import { whatHappensNext } from "./next";

const failed = { code: "agent_error", message: "x", retriable: true };
it.each<[string, Partial<Job>, number, string]>([
  ["queued", {}, 0, "Waits for a free slot on this machine."],
  ["queued again", { attempt: 2 }, 0, "Attempt 2 waits for a free slot on this machine."],
  ["external", { runner: "external" }, 0, "Waits for a worker to claim it."],
  ["claimed", { runner: "external", lease_until: iso(30_000) }, 0, "A worker has claimed it and reports within 30 s."],
  ["running", { status: "RUNNING", started_at: iso(0) }, 12_400, "Running for 12 s; its time limit is in 9 min 48 s."],
  ["overdue", { status: "RUNNING", started_at: iso(0) }, 601_000, "Running for 10 min 1 s; its time limit has passed; it is being ended."],
  ["retry", { status: "FAILED", error: failed, retry_at: iso(4_000), retry_count: 1 }, 100, "Retry 2 of 5 in 4 s."],
  ["retry due", { status: "FAILED", error: failed, retry_at: iso(0), retry_count: 1 }, 100, "Retry 2 of 5 is due now."],
  ["retries used up", { status: "FAILED", error: failed, retry_count: 5 }, 0, "All 5 retries are used up. You can retry it by hand."],
  ["no retries", { status: "FAILED", error: failed, max_retries: 0 }, 0, "No retries were asked for. You can retry it by hand."],
  ["completed", { status: "COMPLETED", started_at: iso(0), completed_at: iso(2_500) }, 9_000, "Finished in 2.5 s. Nothing more happens."],
])("%s", (_, over, at, text) => expect(whatHappensNext(job(over), T0 + at).text).toBe(text));

it("says that a permanent error is not retried", () => {
  const next = whatHappensNext(job({ status: "FAILED", error: { ...failed, retriable: false } }), T0);
  expect(next).toMatchObject({ tone: "bad", text: expect.stringContaining("not retried") as string });
});
