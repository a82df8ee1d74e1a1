/** Objects for the unit tests; every field has the value of a job that was just submitted. */
import type { EventDeliveries, Job, Leg } from "../api/types";
import type { JobUpdate } from "../live/protocol";

export const JOB_ID = "01a93f2c-7b1e-7c3a-9d2f-5e8b61c07e21";
export const T0 = Date.UTC(2026, 10, 21, 12);
export const iso = (ms: number) => new Date(T0 + ms).toISOString();

export function job(over: Partial<Job> = {}): Job {
  return {
    id: JOB_ID,
    user_id: "ada",
    name: "Drift",
    agent: "AnomalyDetection",
    runner: "process",
    dataset_id: "quiet",
    tacc_system: "other",
    external_job_id: null,
    status: "QUEUED",
    progress: null,
    priority: "normal",
    params: {},
    resource_request: { num_nodes: 1, cores_per_node: 1, gpu_count_total: 0, memory_gb: 1, wall_time_minutes: 10 },
    result: null,
    error: null,
    attempt: 1,
    retry_count: 0,
    max_retries: 5,
    retry_at: null,
    cancel_requested: false,
    lease_until: null,
    estimated_cost_usd: 0,
    created_at: iso(0),
    updated_at: iso(0),
    started_at: null,
    completed_at: null,
    ...over,
  } as Job;
}

let n = 0;
export function update(type: string, at: number, data: Record<string, unknown>): JobUpdate {
  n += 1;
  return {
    event_id: `e${n}`,
    type,
    job_id: JOB_ID,
    user_id: "ada",
    timestamp: iso(at),
    sequence: n,
    channel: `job:${JOB_ID}`,
    offset: n,
    data,
  };
}

export function leg(over: Partial<Leg> = {}): Leg {
  return {
    kind: "broker",
    name: "kafka",
    target: "job-lifecycle",
    state: "done",
    attempts: 1,
    position: "p0@1",
    updated_at: iso(0),
    next_at: null,
    last_error: null,
    reason: null,
    ...over,
  } as Leg;
}

export function deliveries(over: Partial<EventDeliveries> = {}): EventDeliveries {
  return {
    event_id: "e1",
    event_type: "job.submitted",
    aggregate_type: "job",
    aggregate_id: JOB_ID,
    sequence: 1,
    occurred_at: iso(0),
    legs: [leg()],
    ...over,
  } as EventDeliveries;
}
