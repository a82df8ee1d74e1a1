/** One sentence: what happens to this job next, and when. Pure. */
import type { Job } from "../api/types";
import { duration, plural } from "../format";
import { retryPlanned } from "./apply";

export interface Next {
  text: string;
  tone: "calm" | "wait" | "bad" | "good";
}

/** `now` in milliseconds by the server's clock. */
export function whatHappensNext(job: Job, now: number): Next {
  switch (job.status) {
    case "QUEUED":
      return queued(job, now);
    case "RUNNING":
      return running(job, now);
    case "COMPLETED":
      return { text: `Finished${took(job)}. Nothing more happens.`, tone: "good" };
    case "CANCELLED":
      return { text: "Cancelled. Nothing more happens.", tone: "calm" };
    case "FAILED":
      return failed(job, now);
  }
}

function queued(job: Job, now: number): Next {
  if (job.cancel_requested) return { text: "Cancel is asked and takes effect at once.", tone: "wait" };
  const which = job.attempt > 1 ? `Attempt ${job.attempt} waits` : "Waits";
  if (job.lease_until != null && Date.parse(job.lease_until) > now) {
    const left = countdown(Date.parse(job.lease_until) - now);
    return { text: `A worker has claimed it and reports within ${left}.`, tone: "calm" };
  }
  const who = {
    process: "a free slot on this machine",
    external: "a worker to claim it",
    tapis: "TACC to take it",
  }[job.runner];
  return { text: `${which} for ${who}.`, tone: "calm" };
}

function running(job: Job, now: number): Next {
  if (job.cancel_requested)
    return { text: "Cancel is asked: the runner ends it within its grace time.", tone: "wait" };
  const limit = job.resource_request.wall_time_minutes * 60_000;
  if (job.started_at == null || limit <= 0) return { text: "Running.", tone: "calm" };
  const started = Date.parse(job.started_at);
  const spent = Math.max(0, now - started);
  const left = limit - spent;
  const limitText =
    left > 0 ? `its time limit is in ${countdown(left)}` : "its time limit has passed; it is being ended";
  return { text: `Running for ${whole(spent)}; ${limitText}.`, tone: left > 0 ? "calm" : "wait" };
}

function failed(job: Job, now: number): Next {
  if (retryPlanned(job)) {
    const left = Date.parse(job.retry_at ?? "") - now;
    const which = `Retry ${job.retry_count + 1} of ${job.max_retries}`;
    if (job.cancel_requested) return { text: `${which} is called off.`, tone: "wait" };
    return {
      text: left > 0 ? `${which} in ${countdown(left)}.` : `${which} is due now.`,
      tone: "wait",
    };
  }
  if (job.error != null && !job.error.retriable)
    return { text: "This error does not go away by itself, so it is not retried. You can retry it by hand.", tone: "bad" };
  if (job.max_retries === 0) return { text: "No retries were asked for. You can retry it by hand.", tone: "bad" };
  return {
    text: `All ${plural(job.max_retries, "retry", "retries")} are used up. You can retry it by hand.`,
    tone: "bad",
  };
}

function took(job: Job): string {
  if (job.started_at == null || job.completed_at == null) return "";
  return ` in ${duration(Date.parse(job.completed_at) - Date.parse(job.started_at))}`;
}

/** Rounded up to whole seconds: a countdown must not say zero before it is over. */
function countdown(ms: number): string {
  return whole(Math.ceil(ms / 1_000) * 1_000);
}

function whole(ms: number): string {
  const s = Math.floor(ms / 1_000);
  return s < 60 ? `${s} s` : duration(s * 1_000);
}
