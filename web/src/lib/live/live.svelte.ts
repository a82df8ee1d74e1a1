/**
 * The live line to the gateway: one socket for the page, channels with offsets, and after
 * every lost connection a resume from the last offset, so that nothing is missed in silence.
 */
import { io, type Socket } from "socket.io-client";
import { tick } from "svelte";
import { clock } from "../clock.svelte";
import { Cursor, Seen } from "./cursor";
import type { Failure, Gap, JobUpdate, Joined, Resumed, Resync, Snapshot, TelemetryUpdate } from "./protocol";

const ACK_TIMEOUT_MS = 10_000;
const SEEN_EVERY_MS = 1_000;
const REMEMBERED_IDS = 5_000;
/** A hole that several resumes do not fill is shown as a gap: waiting longer would be silence. */
const HOLE_TRIES = 3;
/** After a refusal by the server (not a lost line) socket.io does not try again by itself. */
const RETRY_REFUSED_MS = 5_000;
/** The gateway could not read its store: it says so, and means "in a moment". */
const RETRY_UNAVAILABLE_MS = 1_000;

export type LineState = "off" | "connecting" | "catching-up" | "live" | "offline";

/** What a part of the page wants to hear; `job` limits it to one job. */
export interface Listener {
  job?: string;
  update?: (update: JobUpdate) => void;
  telemetry?: (sample: TelemetryUpdate) => void;
  gap?: (gap: Gap) => void;
  /** The state at the moment of a first join, or after a gap. */
  snapshot?: (snapshot: Snapshot, channel: string) => void;
  /** The line is up again and everything missed has been delivered. */
  caughtUp?: () => void;
}

interface Room {
  cursor: Cursor;
  holders: number;
  /** Joined on the present connection. */
  joined: boolean;
  resuming: boolean;
  /** Updates beyond a hole, kept until the missing stretch has come. */
  held: JobUpdate[];
  /** Resumes asked for the present hole. */
  tries: number;
}

class Live {
  state = $state<LineState>("off");
  /** When the line was lost, by the server's clock; null while it is up. */
  offlineSince = $state<number | null>(null);
  /** Why the server refused the line, where it said so. */
  refusal = $state<string | null>(null);
  transport = $state<string | null>(null);
  /** Bumped when rooms or offsets change, for the settings page. */
  version = $state(0);

  #socket: Socket | null = null;
  #token: string | null = null;
  #userId: string | null = null;
  #rooms = new Map<string, Room>();
  #listeners = new Set<Listener>();
  #seen = new Seen(REMEMBERED_IDS);
  #unreported = new Map<string, number>();
  #reportTimer: ReturnType<typeof setTimeout> | null = null;
  #retryTimer: ReturnType<typeof setTimeout> | null = null;
  #expiring: (at: string) => void = () => undefined;
  /** Rooms to be joined together: a list joins dozens at once. */
  #joining = new Set<string>();

  /** Opens the line for a user; `expiring` is told when the token nears its end. */
  open(token: string, userId: string, expiring: (at: string) => void): void {
    this.#expiring = expiring;
    if (this.#socket !== null && this.#userId === userId) {
      if (this.#token === token) return;
      this.#token = token;
      this.#socket.emit("auth_refresh", { token });
      return;
    }
    // A line belongs to one user: somebody else gets another.
    this.close();
    this.#userId = userId;
    this.#token = token;
    this.state = "connecting";
    // The server joins this room by itself; it is here for its offset.
    this.#rooms.set(`user:${userId}`, room(1));
    this.version += 1;
    const socket = io("/messaging", {
      path: "/socket.io",
      transports: ["websocket", "polling"],
      tryAllTransports: true,
      auth: (give) => give({ token: this.#token }),
      reconnectionDelay: 300,
      reconnectionDelayMax: 5_000,
      timeout: 6_000,
      forceNew: true,
    });
    this.#socket = socket;
    socket.on("connect", () => void this.#connected(socket));
    socket.on("disconnect", (reason) => this.#lost(socket, reason === "io server disconnect"));
    socket.on("connect_error", (error) => {
      this.refusal = socket.active ? null : error.message;
      this.#lost(socket, !socket.active);
    });
    socket.on("job_update", (update: JobUpdate, ack?: () => void) => this.#update(update, ack));
    // Notifications count in the user's channel too.
    socket.on("job_notification", (update: JobUpdate, ack?: () => void) => this.#update(update, ack));
    socket.on("telemetry_update", (sample: TelemetryUpdate) => {
      for (const l of [...this.#listeners])
        if (l.job === undefined || l.job === sample.job_id) l.telemetry?.(sample);
    });
    socket.on("resync", (resync: Resync) => this.#resync(resync));
    socket.on("auth_expiring", ({ at }: { at: string }) => this.#expiring(at));
  }

  close(): void {
    if (this.#retryTimer !== null) clearTimeout(this.#retryTimer);
    if (this.#reportTimer !== null) clearTimeout(this.#reportTimer);
    this.#retryTimer = this.#reportTimer = null;
    const socket = this.#socket;
    this.#socket = null;
    this.#token = this.#userId = null;
    this.#rooms.clear();
    this.#unreported.clear();
    socket?.disconnect();
    this.state = "off";
    this.offlineSince = null;
    this.transport = null;
  }

  listen(listener: Listener): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /**
   * Joins a job's room from `lastOffset` on (what the caller has already read over REST);
   * what lies between arrives as updates. Returns how to leave.
   */
  join(jobId: string, lastOffset: number | null): () => void {
    const name = `job:${jobId}`;
    const known = this.#rooms.get(name);
    if (known !== undefined) known.holders += 1;
    else {
      this.#rooms.set(name, room(1, lastOffset));
      this.#joinSoon(name);
    }
    this.version += 1;
    let left = false;
    return () => {
      if (left) return;
      left = true;
      const held = this.#rooms.get(name);
      if (held === undefined) return;
      held.holders -= 1;
      if (held.holders > 0) return;
      this.#rooms.delete(name);
      this.#unreported.delete(name);
      this.version += 1;
      if (this.#socket?.connected === true) this.#socket.emit("leave_job_channel", { jobId });
    };
  }

  /** Channel names with their offsets, as the settings page shows them. */
  channels(): { name: string; offset: number | null }[] {
    return [...this.#rooms].map(([name, r]) => ({ name, offset: r.cursor.offset }));
  }

  async #connected(socket: Socket): Promise<void> {
    this.refusal = null;
    this.state = "catching-up";
    this.transport = socket.io.engine.transport.name;
    socket.io.engine.on("upgrade", (t: { name: string }) => (this.transport = t.name));
    const resume: Record<string, number | null> = {};
    for (const [name, r] of this.#rooms) {
      r.joined = false;
      r.resuming = false;
      r.held = [];
      r.tries = 0;
      // Null asks for a snapshot: there is nothing yet that could be continued.
      resume[name] = r.cursor.offset;
    }
    try {
      await this.#resume(socket, resume);
    } catch {
      // No ack in time: the line is not good. Reconnecting starts over from the same offsets.
      if (this.#socket === socket && socket.connected) {
        socket.disconnect();
        this.#lost(socket, true);
      }
      return;
    }
    if (this.#socket !== socket || !socket.connected) return;
    this.state = "live";
    this.offlineSince = null;
    // Rooms that were wanted while the others were being resumed.
    for (const [name, r] of this.#rooms) if (!r.joined && !(name in resume)) this.#joinSoon(name);
    for (const l of [...this.#listeners]) l.caughtUp?.();
  }

  #lost(socket: Socket, refused: boolean): void {
    if (this.#socket !== socket) return;
    this.offlineSince ??= clock.precise();
    this.state = "offline";
    this.transport = null;
    if (!refused || this.#retryTimer !== null) return;
    this.#retryTimer = setTimeout(() => {
      this.#retryTimer = null;
      if (this.#socket === socket && !socket.connected) socket.connect();
    }, RETRY_REFUSED_MS);
  }

  #joinSoon(name: string): void {
    this.#joining.add(name);
    if (this.#joining.size > 1) return;
    queueMicrotask(() => {
      const socket = this.#socket;
      const wanted = [...this.#joining].flatMap((each): [string, number | null][] => {
        const r = this.#rooms.get(each);
        return r === undefined || r.joined || r.resuming ? [] : [[each, r.cursor.offset]];
      });
      this.#joining.clear();
      // Without a line, connecting joins every room there is.
      if (socket === null || this.state !== "live") return;
      this.#resume(socket, Object.fromEntries(wanted)).catch(() => this.#restart(socket));
    });
  }

  async #resume(socket: Socket, channels: Record<string, number | null>): Promise<void> {
    if (Object.keys(channels).length === 0) return;
    for (const name of Object.keys(channels)) {
      const r = this.#rooms.get(name);
      if (r !== undefined) r.resuming = true;
    }
    const answer = (await socket
      .timeout(ACK_TIMEOUT_MS)
      .emitWithAck("resume", { channels, acks: true })) as Resumed;
    for (const name of Object.keys(channels)) {
      const joined = answer.channels?.[name];
      const failed = answer.error ?? { code: "no_answer", message: "the gateway did not answer for this channel" };
      this.#joined(name, joined ?? { joined: false, error: failed });
    }
  }

  /** Takes what the server sent for a channel: the missed updates, or a snapshot and a gap. */
  #joined(name: string, answer: Joined): void {
    const r = this.#rooms.get(name);
    if (r === undefined) return;
    r.resuming = false;
    r.joined = answer.joined;
    if (answer.error !== undefined) this.#failed(name, answer.error);
    if (answer.resync !== undefined) this.#snapshot(name, r, answer.resync.to, answer.resync.snapshot);
    for (const update of answer.events ?? []) {
      r.cursor.advance(update.offset);
      this.#deliver(update);
    }
    if (answer.offset !== undefined) r.cursor.advance(answer.offset);
    const held = r.held.sort((a, b) => a.offset - b.offset);
    r.held = [];
    for (const update of held) this.#step(r, update);
    this.#report(name, r);
    this.version += 1;
  }

  #failed(name: string, error: Failure): void {
    const socket = this.#socket;
    if (error.code !== "unavailable" || socket === null) return;
    setTimeout(() => {
      const r = this.#rooms.get(name);
      if (r === undefined || r.joined || r.resuming || this.#socket !== socket || !socket.connected) return;
      this.#resume(socket, { [name]: r.cursor.offset }).catch(() => this.#restart(socket));
    }, RETRY_UNAVAILABLE_MS);
  }

  #resync(resync: Resync): void {
    const r = this.#rooms.get(resync.channel);
    if (r === undefined || resync.to === null) return;
    this.#snapshot(resync.channel, r, resync.to, resync.snapshot);
    this.version += 1;
  }

  /** Takes a snapshot as of `to`. It is a gap if there was something before that it skips. */
  #snapshot(name: string, r: Room, to: number, snapshot: Snapshot): void {
    const from = r.cursor.offset;
    if (from !== null && to > from) this.#gap(name, from, to);
    // A store that was put back may be behind what the page had.
    if (from !== null && to < from) r.cursor = new Cursor(to);
    else r.cursor.advance(to);
    const job = name.startsWith("job:") ? name.slice("job:".length) : null;
    for (const l of [...this.#listeners])
      if (l.job === undefined || l.job === job) l.snapshot?.(snapshot, name);
  }

  #gap(name: string, from: number, to: number): void {
    const gap: Gap = { channel: name, from, to, skipped: to - from, at: clock.precise() };
    const job = name.startsWith("job:") ? name.slice("job:".length) : null;
    for (const l of [...this.#listeners])
      if (l.job === undefined || l.job === job) l.gap?.(gap);
  }

  #update(update: JobUpdate, ack?: () => void): void {
    const r = this.#rooms.get(update.channel);
    if (r === undefined) this.#deliver(update);
    else if (!this.#step(r, update)) return;
    else this.#report(update.channel, r);
    // A hidden page draws no frame: an ack from there would claim that somebody saw it.
    if (ack !== undefined && document.visibilityState === "visible") afterFrame(ack);
  }

  /** Takes an update in its channel's order; false when it waits for what is missing before it. */
  #step(r: Room, update: JobUpdate): boolean {
    if (r.cursor.judge(update.offset) === "hole") {
      const offset = r.cursor.offset ?? 0;
      const socket = this.#socket;
      if (r.resuming || (socket?.connected === true && r.tries < HOLE_TRIES)) {
        r.held.push(update);
        if (!r.resuming && socket !== null) {
          r.tries += 1;
          this.#resume(socket, { [update.channel]: offset }).catch(() => this.#restart(socket));
        }
        return false;
      }
      this.#gap(update.channel, offset, update.offset - 1);
    }
    r.tries = 0;
    r.cursor.advance(update.offset);
    this.#deliver(update);
    return true;
  }

  /** The line answers no more though it looks open: a new one resumes from the same offsets. */
  #restart(socket: Socket): void {
    if (this.#socket === socket) socket.disconnect().connect();
  }

  #deliver(update: JobUpdate): void {
    // Notifications have a place of their own, later; here they only count.
    if (update.type.startsWith("notification.") || !this.#seen.first(update.event_id)) return;
    for (const l of [...this.#listeners])
      if (l.job === undefined || l.job === update.job_id) l.update?.(update);
  }

  /** Tells the server how far this reader has come, at most once a second for all channels. */
  #report(name: string, r: Room): void {
    if (r.cursor.offset === null) return;
    this.#unreported.set(name, r.cursor.offset);
    this.#reportTimer ??= setTimeout(() => {
      this.#reportTimer = null;
      if (this.#socket?.connected === true && this.#unreported.size > 0)
        this.#socket.emit("seen", Object.fromEntries(this.#unreported));
      this.#unreported.clear();
    }, SEEN_EVERY_MS);
  }
}

function room(holders: number, offset: number | null = null): Room {
  return { cursor: new Cursor(offset), holders, joined: false, resuming: false, held: [], tries: 0 };
}

/** Runs after the frame that shows the present state: state, then DOM, then paint, then this. */
function afterFrame(done: () => void): void {
  void tick().then(() => requestAnimationFrame(() => setTimeout(done, 0)));
}

export const live = new Live();
