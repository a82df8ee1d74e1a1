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
  timestamp: string;
  data: { sample_timestamp?: string; metrics?: Record<string, unknown> };
}

/** State in place of updates: at the first join, or when those missed are too many or too old. */
export interface Snapshot {
  job?: Job | null;
  jobs?: Job[];
  unread?: number;
}

/** The server had to skip a stretch; it goes on after `to` by itself. Rooms without history have null. */
export interface Resync {
  channel: string;
  from: number | null;
  to: number | null;
  snapshot: Snapshot;
}

export interface Failure {
  /** Stable, for programs. */
  code: string;
  message: string;
}

/** The answer to a join, alone or inside the answer to a resume. */
export interface Joined {
  joined: boolean;
  room?: string;
  offset?: number;
  events?: JobUpdate[];
  resync?: { snapshot: Snapshot; from: number | null; to: number };
  error?: Failure;
}

export interface Resumed {
  channels?: Record<string, Joined>;
  error?: Failure;
}

/** A stretch of a channel that was skipped, told to those who show it. */
export interface Gap {
  channel: string;
  /** The last offset seen before the gap. */
  from: number;
  to: number;
  /** How many updates lie in it. */
  skipped: number;
  at: number;
}
