/** The filters of the jobs list as they stand in the URL, and what they mean. Pure. */
import { JOB_STATUSES, TACC_SYSTEMS, type Job, type JobQuery, type JobStatus } from "../api/types";

export interface Filters {
  status: JobStatus[];
  agent: string | null;
  tacc_system: string | null;
  user: string | null;
  /** RFC 3339, or a relative stretch such as `24h` that is resolved when asked. */
  from: string | null;
  to: string | null;
  q: string | null;
}

/** Relative stretches offered for `from`, in milliseconds. */
export const SINCE: Record<string, number> = {
  "1h": 3_600_000,
  "24h": 86_400_000,
  "7d": 604_800_000,
  "30d": 2_592_000_000,
};

export function readFilters(query: URLSearchParams): Filters {
  const statuses = (query.get("status") ?? "").toUpperCase().split(",");
  const system = query.get("tacc_system");
  return {
    status: JOB_STATUSES.filter((s) => statuses.includes(s)),
    agent: text(query.get("agent")),
    tacc_system: TACC_SYSTEMS.some((s) => s === system) ? system : null,
    user: text(query.get("user")),
    from: text(query.get("from")),
    to: text(query.get("to")),
    q: text(query.get("q")),
  };
}

/** The REST query; `now` resolves a relative `from`. */
export function toQuery(f: Filters, now: number): JobQuery {
  const query: Record<string, string> = {};
  if (f.status.length > 0) query["status"] = f.status.join(",");
  if (f.agent !== null) query["agent"] = f.agent;
  if (f.tacc_system !== null) query["tacc_system"] = f.tacc_system;
  if (f.user !== null) query["user"] = f.user;
  if (f.q !== null) query["q"] = f.q;
  const stretch = f.from === null ? undefined : SINCE[f.from];
  if (stretch !== undefined) query["from"] = new Date(now - stretch).toISOString();
  else if (f.from !== null) query["from"] = f.from;
  if (f.to !== null) query["to"] = f.to;
  return query as JobQuery;
}

export function isFiltered(f: Filters): boolean {
  return (
    f.status.length > 0 ||
    [f.agent, f.tacc_system, f.user, f.from, f.to, f.q].some((v) => v !== null)
  );
}

/** Whether a newly submitted job would stand in this list; used to count what is new, not to list it. */
export function mayMatch(
  f: Filters,
  job: Pick<Job, "agent" | "user_id" | "tacc_system" | "name">,
  status: JobStatus = "QUEUED",
): boolean {
  return (
    (f.status.length === 0 || f.status.includes(status)) &&
    (f.agent === null || f.agent === job.agent) &&
    (f.tacc_system === null || f.tacc_system === job.tacc_system) &&
    (f.user === null || f.user === job.user_id) &&
    (f.q === null || job.name.toLowerCase().includes(f.q.toLowerCase())) &&
    f.to === null
  );
}

function text(value: string | null): string | null {
  const trimmed = value?.trim() ?? "";
  return trimmed === "" ? null : trimmed;
}
