/** What travels on the Socket.IO namespace /messaging. */
import type { Job } from "../api/types";

/** One event as a room's members get it. `offset` counts the channel, `sequence` the aggregate. */
export interface JobUpdate {
  event_id: string;
  type: string;
  job_id: string;
  user_id: string;
  timestamp: string;
  sequence: number;
  channel: string;
  offset: number;
  data: Record<string, unknown>;
}

/** One sample of a running job. It has no offset: a missed one is in the REST series. */
export interface TelemetryUpdate {
  job_id: string;
  [field: string]: unknown;
}

/** State in place of updates that were too many or too old to send. */
export interface Snapshot {
  job?: Job;
  jobs?: Job[];
  unread?: number;
}

export interface Resync {
  channel: string;
  from: number;
  to: number;
  snapshot: Snapshot;
}

/** The answer to a join, alone or inside the answer to a resume. */
export interface Joined {
  joined: boolean;
  room?: string;
  offset?: number;
  events?: JobUpdate[];
  resync?: { snapshot: Snapshot; from?: number; to?: number };
  error?: unknown;
}

export interface Resumed {
  channels?: Record<string, Joined>;
  error?: unknown;
}

/** A stretch of a channel that was skipped, told to those who show it. */
export interface Gap {
  channel: string;
  /** The last offset seen before the gap; null when none was. */
  from: number | null;
  to: number;
  /** How many updates lie in it, where that is known. */
  skipped: number | null;
  at: number;
  snapshot: Snapshot;
}
