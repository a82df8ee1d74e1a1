import { expect, it } from "vitest";
import { applyUpdate, canCancel, canRetry, isProgressOnly } from "./apply";
import { iso, job, update } from "./fixtures";

const started = { previous_status: "QUEUED", new_status: "RUNNING", attempt: 1, progress: 0 };

it("follows a job from start to end", () => {
  let j = applyUpdate(job(), update("job.status.changed", 10, started));
  expect(j).toMatchObject({ status: "RUNNING", progress: 0, started_at: iso(10) });
  j = applyUpdate(j, update("job.status.changed", 20, { ...started, previous_status: "RUNNING", progress: 0.5 }));
  expect(j).toMatchObject({ progress: 0.5, started_at: iso(10), updated_at: iso(20) });
  j = applyUpdate(j, update("job.completed", 30, { attempt: 1, execution_time_ms: 20 }));
  expect(j).toMatchObject({ status: "COMPLETED", progress: 1, completed_at: iso(30) });
});

it("shows a planned retry, then a clean second attempt", () => {
  const failed = applyUpdate(
    job({ status: "RUNNING" }),
    update("job.failed", 10, {
      attempt: 1,
      error_code: "agent_error",
      error_message: "no signal",
      retriable: true,
      retry_count: 0,
      max_retries: 5,
      next_retry_timestamp: iso(4_000),
    }),
  );
  expect(failed).toMatchObject({ status: "FAILED", retry_at: iso(4_000), error: { code: "agent_error" } });
  expect([canCancel(failed), canRetry(failed)]).toEqual([true, false]);
  const again = applyUpdate(
    failed,
    update("job.status.changed", 4_000, { previous_status: "FAILED", new_status: "QUEUED", attempt: 2 }),
  );
  expect(again).toMatchObject({ status: "QUEUED", attempt: 2, retry_at: null, error: null, started_at: null });
});

it("takes a retry time in milliseconds too", () => {
  const j = applyUpdate(job(), update("job.failed", 1, { next_retry_timestamp: Date.parse(iso(9)) }));
  expect(j.retry_at).toBe(iso(9));
});

it("ignores what is older, of another job, or of no consequence", () => {
  const j = job({ updated_at: iso(100) });
  expect(applyUpdate(j, update("job.completed", 50, {}))).toBe(j);
  expect(applyUpdate(j, { ...update("job.completed", 200, {}), job_id: "other" })).toBe(j);
  expect(applyUpdate(j, update("job.performance.summary", 200, {}))).toBe(j);
  expect(applyUpdate(j, update("job.status.changed", 200, { new_status: "SOMETHING" }))).toBe(j);
});

it("tells progress from a change of state", () => {
  const u = update("job.status.changed", 1, { ...started, previous_status: "RUNNING" });
  expect([isProgressOnly(job({ status: "RUNNING" }), u), isProgressOnly(job(), u)]).toEqual([true, false]);
});

it("offers a retry only after a final failure", () => {
  expect(canRetry(job({ status: "FAILED" }))).toBe(true);
  expect(canRetry(job({ status: "CANCELLED" }))).toBe(false);
  expect(canCancel(job({ cancel_requested: true }))).toBe(false);
});
