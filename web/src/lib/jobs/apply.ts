/** What one event means for a job as it is shown. Pure; the server's own row follows and wins. */
import type { Job, JobStatus } from "../api/types";
import type { JobUpdate } from "../live/protocol";

const STATUSES: readonly string[] = ["QUEUED", "RUNNING", "COMPLETED", "FAILED", "CANCELLED"];

/** The job after the update; the same object when the update is older or says nothing new. */
export function applyUpdate(job: Job, update: JobUpdate): Job {
  if (update.job_id !== job.id) return job;
  if (Date.parse(update.timestamp) < Date.parse(job.updated_at)) return job;
  const d = update.data;
  const at = { updated_at: update.timestamp };
  switch (update.type) {
    case "job.status.changed": {
      const status = d["new_status"];
      if (!isStatus(status)) return job;
      const attempt = num(d["attempt"]) ?? job.attempt;
      const next: Job = { ...job, ...at, status, attempt };
      if (status === "QUEUED") {
        return {
          ...next,
          progress: null,
          started_at: null,
          completed_at: null,
          retry_at: null,
          result: null,
          error: null,
          cancel_requested: false,
        };
      }
      if (status === "RUNNING") {
        const begins = job.status !== "RUNNING" || attempt !== job.attempt;
        return {
          ...next,
          progress: num(d["progress"]) ?? (begins ? null : job.progress),
          started_at: begins ? update.timestamp : job.started_at,
          completed_at: null,
          retry_at: null,
        };
      }
      return { ...next, completed_at: update.timestamp };
    }
    case "job.completed":
      return { ...job, ...at, status: "COMPLETED", progress: 1, completed_at: update.timestamp };
    case "job.failed": {
      const exitCode = num(d["exit_code"]);
      return {
        ...job,
        ...at,
        status: "FAILED",
        attempt: num(d["attempt"]) ?? job.attempt,
        retry_count: num(d["retry_count"]) ?? job.retry_count,
        max_retries: num(d["max_retries"]) ?? job.max_retries,
        retry_at: str(d["next_retry_timestamp"]) ?? isoFrom(d["next_retry_timestamp"]),
        completed_at: update.timestamp,
        error: {
          code: str(d["error_code"]) ?? "unknown",
          message: str(d["error_message"]) ?? "",
          retriable: d["retriable"] === true,
          ...(exitCode === null ? {} : { exit_code: exitCode }),
        },
      };
    }
    case "job.cancelled":
      return { ...job, ...at, status: "CANCELLED", retry_at: null, completed_at: update.timestamp };
    default:
      return job;
  }
}

/** Progress alone needs no second look at the server; everything else does. */
export function isProgressOnly(job: Job, update: JobUpdate): boolean {
  return (
    update.type === "job.status.changed" &&
    update.data["new_status"] === "RUNNING" &&
    update.data["previous_status"] === "RUNNING" &&
    job.status === "RUNNING"
  );
}

export function isOpen(job: Job): boolean {
  return job.status === "QUEUED" || job.status === "RUNNING" || retryPlanned(job);
}

export function retryPlanned(job: Job): boolean {
  return job.status === "FAILED" && job.retry_at !== null && job.retry_at !== undefined;
}

export function canCancel(job: Job): boolean {
  return isOpen(job) && !job.cancel_requested;
}

export function canRetry(job: Job): boolean {
  return job.status === "FAILED" && !retryPlanned(job);
}

function isStatus(value: unknown): value is JobStatus {
  return typeof value === "string" && STATUSES.includes(value);
}
function num(value: unknown): number | null {
  return typeof value === "number" && Number.isFinite(value) ? value : null;
}
function str(value: unknown): string | null {
  return typeof value === "string" && value !== "" ? value : null;
}
/** Avro timestamps are milliseconds; the REST ones are text. */
function isoFrom(value: unknown): string | null {
  const ms = num(value);
  return ms === null ? null : new Date(ms).toISOString();
}
