import { afterEach, beforeEach, expect, it, vi } from "vitest";
import type { Job } from "../api/types";
import type { Gap, JobUpdate, Joined } from "./protocol";

/** What the page sends with an ack, answered by the test. */
type Ask = (event: string, argument: { channels: Record<string, number | null> }) => Promise<unknown>;

/** The server's side of the socket. */
class FakeSocket {
  connected = false;
  active = true;
  io = { engine: { transport: { name: "websocket" }, on: vi.fn() } };
  #handlers = new Map<string, (...args: never[]) => void>();
  sent: [string, unknown][] = [];
  ask = vi.fn<Ask>();
  on(event: string, handler: (...args: never[]) => void) {
    this.#handlers.set(event, handler);
  }
  emit(event: string, argument: unknown) {
    this.sent.push([event, argument]);
  }
  timeout() {
    return { emitWithAck: this.ask };
  }
  connect() {
    this.connected = true;
    this.fire("connect");
    return this;
  }
  disconnect() {
    this.connected = false;
    return this;
  }
  drop() {
    this.connected = false;
    this.fire("disconnect", "transport close");
  }
  fire(event: string, ...args: unknown[]) {
    this.#handlers.get(event)?.(...(args as never[]));
  }
}

let socket: FakeSocket;
vi.mock("socket.io-client", () => ({ io: () => socket }));

const JOB = "job:j";
const update = (offset: number, over: Partial<JobUpdate> = {}): JobUpdate => ({
  event_id: `e${offset}`,
  type: "job.status.changed",
  job_id: "j",
  user_id: "ada",
  timestamp: new Date(offset).toISOString(),
  sequence: offset,
  channel: JOB,
  offset,
  data: {},
  ...over,
});
const joined = (offset: number, over: Partial<Joined> = {}): Joined => ({ joined: true, offset, events: [], ...over });

/** Answers each channel of a resume by `answers`, the rest as joined at its offset. */
function answering(answers: Record<string, Joined>) {
  socket.ask.mockImplementation((_event, { channels }) =>
    Promise.resolve({
      channels: Object.fromEntries(Object.entries(channels).map(([name, at]) => [name, answers[name] ?? joined(at ?? 0)])),
    }),
  );
}

async function fresh() {
  vi.resetModules();
  const { live } = await import("./live.svelte");
  const seen = { offsets: [] as number[], gaps: [] as Gap[], snapshots: 0, caughtUp: 0 };
  live.listen({
    job: "j",
    update: (u) => seen.offsets.push(u.offset),
    gap: (g) => seen.gaps.push(g),
    snapshot: () => (seen.snapshots += 1),
    caughtUp: () => (seen.caughtUp += 1),
  });
  return { live, seen };
}
const settle = () => vi.advanceTimersByTimeAsync(0);

beforeEach(() => {
  vi.useFakeTimers();
  vi.stubGlobal("document", { addEventListener: vi.fn(), visibilityState: "visible", hidden: false });
  vi.stubGlobal("requestAnimationFrame", (f: () => void) => setTimeout(f, 16));
  socket = new FakeSocket();
});
afterEach(() => {
  vi.useRealTimers();
  vi.unstubAllGlobals();
});

async function watching(from: number | null = 3) {
  const it = await fresh();
  answering({});
  it.live.open("t", "ada", () => undefined);
  socket.connect();
  await settle();
  const leave = it.live.join("j", from);
  await settle();
  return { ...it, leave };
}

it("joins from the offset that was read, with acks, and goes live", async () => {
  const { live } = await watching(3);
  expect(live.state).toBe("live");
  expect(socket.ask.mock.calls.map(([event, argument]) => [event, argument])).toEqual([
    ["resume", { channels: { "user:ada": null }, acks: true }],
    ["resume", { channels: { [JOB]: 3 }, acks: true }],
  ]);
});

it("delivers each event once, whichever channels it comes over", async () => {
  const { seen } = await watching(3);
  socket.fire("job_update", update(4));
  socket.fire("job_update", update(4, { channel: "user:ada", offset: 1 }));
  socket.fire("job_update", update(4));
  socket.fire("job_update", update(5));
  expect(seen.offsets).toEqual([4, 5]);
});

it("resumes every channel from its last offset after a lost line", async () => {
  const { live, seen } = await watching(3);
  socket.fire("job_update", update(4));
  socket.fire("job_update", update(4, { event_id: "u", channel: "user:ada", offset: 1, job_id: "other" }));
  socket.drop();
  expect(live.state).toBe("offline");
  expect(live.offlineSince).not.toBeNull();
  socket.ask.mockClear();
  answering({ [JOB]: joined(6, { events: [update(5), update(6)] }) });
  socket.connect();
  expect(live.state).toBe("catching-up");
  await settle();
  expect(socket.ask.mock.calls[0]?.[1]).toEqual({ channels: { "user:ada": 1, [JOB]: 4 }, acks: true });
  expect(seen).toMatchObject({ offsets: [4, 5, 6], gaps: [], caughtUp: 2 });
  expect([live.state, live.offlineSince]).toEqual(["live", null]);
});

it("keeps order when live updates overtake the answer to a resume", async () => {
  const { seen } = await watching(3);
  socket.drop();
  let answer: (value: unknown) => void = () => undefined;
  socket.ask.mockImplementation(() => new Promise((done) => (answer = done)));
  socket.connect();
  socket.fire("job_update", update(7));
  expect(seen.offsets).toEqual([]);
  answer({ channels: { "user:ada": joined(0), [JOB]: joined(6, { events: [update(4), update(5), update(6)] }) } });
  await settle();
  expect(seen.offsets).toEqual([4, 5, 6, 7]);
});

it("asks for what a hole hides, and shows a gap only when it cannot be had", async () => {
  const { seen } = await watching(3);
  answering({ [JOB]: joined(6, { events: [update(4), update(5), update(6)] }) });
  socket.fire("job_update", update(6));
  await settle();
  expect(seen).toMatchObject({ offsets: [4, 5, 6], gaps: [] });

  answering({});
  socket.ask.mockClear();
  socket.fire("job_update", update(9));
  await settle();
  expect(socket.ask).toHaveBeenCalledTimes(3);
  expect(seen.offsets).toEqual([4, 5, 6, 9]);
  expect(seen.gaps).toMatchObject([{ channel: JOB, from: 6, to: 8, skipped: 2 }]);
});

it("takes a snapshot as a gap only if it skips something", async () => {
  const { seen } = await watching(null);
  const job = { id: "j" } as Job;
  socket.drop();
  answering({ [JOB]: joined(5, { resync: { from: null, to: 5, snapshot: { job } } }) });
  socket.connect();
  await settle();
  expect(seen).toMatchObject({ gaps: [{ from: 0, to: 5 }], snapshots: 1 });

  socket.fire("resync", { channel: JOB, from: 5, to: 905, snapshot: { job } });
  socket.fire("job_update", update(906));
  expect(seen).toMatchObject({ gaps: [{}, { from: 5, to: 905, skipped: 900 }], snapshots: 2, offsets: [906] });

  socket.fire("resync", { channel: "role:operator", from: null, to: null, snapshot: {} });
  expect(seen.gaps).toHaveLength(2);
});

it("acknowledges after the frame that shows the update, and not from a hidden page", async () => {
  await watching(3);
  const ack = vi.fn();
  socket.fire("job_update", update(4), ack);
  expect(ack).not.toHaveBeenCalled();
  await vi.advanceTimersByTimeAsync(20);
  expect(ack).toHaveBeenCalledOnce();
  vi.stubGlobal("document", { visibilityState: "hidden" });
  socket.fire("job_update", update(5), ack);
  await vi.advanceTimersByTimeAsync(50);
  expect(ack).toHaveBeenCalledOnce();
});

it("reports how far it has seen, at most once a second for all channels", async () => {
  await watching(3);
  await vi.advanceTimersByTimeAsync(1_000);
  socket.sent = [];
  for (let n = 4; n <= 8; n += 1) socket.fire("job_update", update(n));
  expect(socket.sent).toEqual([]);
  await vi.advanceTimersByTimeAsync(1_000);
  expect(socket.sent).toEqual([["seen", { [JOB]: 8 }]]);
});

it("leaves a room with its last holder", async () => {
  const { live, leave } = await watching(3);
  const second = live.join("j", null);
  leave();
  leave();
  expect(socket.sent.filter(([event]) => event === "leave_job_channel")).toEqual([]);
  second();
  expect(socket.sent).toContainEqual(["leave_job_channel", { jobId: "j" }]);
});

it("tries a channel again that the gateway could not read", async () => {
  const { seen } = await watching(3);
  socket.drop();
  answering({ [JOB]: { joined: false, error: { code: "unavailable", message: "in a moment" } } });
  socket.connect();
  await settle();
  answering({ [JOB]: joined(4, { events: [update(4)] }) });
  await vi.advanceTimersByTimeAsync(1_000);
  expect(seen.offsets).toEqual([4]);
});

it("refreshes a new token on the open line", async () => {
  const { live } = await watching(3);
  live.open("t2", "ada", () => undefined);
  expect(socket.sent).toContainEqual(["auth_refresh", { token: "t2" }]);
});

it("opens another line for another user", async () => {
  const { live } = await watching(3);
  const before = socket;
  socket = new FakeSocket();
  answering({});
  live.open("t3", "grace", () => undefined);
  expect([before.connected, before.sent.some(([event]) => event === "auth_refresh")]).toEqual([false, false]);
  socket.connect();
  await settle();
  expect(live.channels()).toEqual([{ name: "user:grace", offset: 0 }]);
});
