// Connecting, joining and following with the npm client.
import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";
import { Client, closeAll, connect, range } from "./client.mjs";
import { Gateway, someone, token } from "./gateway.mjs";

/** @type {Gateway} */
let gateway;
before(async () => (gateway = await Gateway.start({ GATEWAY__LIVE__ACK_EVERY: "1" })));
after(() => {
  closeAll();
  return gateway.close();
});

const refusal = async (auth, options) => {
  const client = new Client(gateway.url, auth, options);
  try {
    await client.connected();
    assert.fail("it got in");
  } catch (error) {
    return error;
  } finally {
    client.close();
  }
};

describe("coming in", () => {
  for (const transports of [["websocket"], ["polling"], ["polling", "websocket"]]) {
    it(`by ${transports.join(", then ")}`, async () => {
      const user = someone();
      const client = await connect(gateway.url, token(user), { transports });
      const run = await gateway.running(user);
      const joined = await client.join(run.id, 2);
      assert.equal(joined.joined, true);
      await run.report(20);
      await client.reached(run.channel, run.head);
      assert.deepEqual(client.offsets(run.channel), range(3, run.head));
      client.close();
    });
  }

  it("with a Bearer header", async () => {
    const options = { auth: {}, extraHeaders: { authorization: `Bearer ${token(someone())}` } };
    const client = await connect(gateway.url, undefined, options);
    client.close();
  });

  it("not with a bad token", async () => {
    const good = token(someone());
    const unsigned = `${Buffer.from('{"alg":"none"}').toString("base64url")}.${good.split(".")[1]}.`;
    for (const [bad, code] of [
      ["garbage", "invalid_token"],
      [`${good.slice(0, -2)}xx`, "invalid_token"],
      [unsigned, "invalid_token"],
      [token(someone(), "user", -60), "token_expired"],
      [undefined, "unauthenticated"],
    ]) {
      const error = await refusal(bad);
      assert.equal(error.data?.code, code, `${bad}: ${error.message}`);
    }
  });

  it("not from a page of another site", async () => {
    const error = await refusal(token(someone()), {
      transports: ["polling"],
      extraHeaders: { origin: "https://evil.example" },
      reconnection: false,
    });
    assert.equal(error.context?.status ?? error.description, 403);
  });

  it("not to another namespace", async () => {
    const client = new Client(gateway.url, token(someone()));
    const { io } = await import("socket.io-client");
    const socket = io(`${gateway.url}/other`, { transports: ["websocket"], forceNew: true, reconnection: false });
    const error = await new Promise((resolve) => socket.once("connect_error", resolve));
    assert.match(error.message, /namespace/);
    socket.disconnect();
    client.close();
  });

  it("at most five times a user, operators as often as they like", async () => {
    const user = someone();
    const held = [];
    for (let i = 0; i < 5; i += 1) held.push(await connect(gateway.url, token(user)));
    assert.equal((await refusal(token(user))).data?.code, "too_many_connections");
    for (let i = 0; i < 8; i += 1) held.push(await connect(gateway.url, token(user, "operator")));
    for (const client of held) client.close();
  });
});

describe("following a job", () => {
  it("starts with a snapshot and goes on live", async () => {
    const user = someone();
    const client = await connect(gateway.url, token(user));
    const run = await gateway.running(user);
    const joined = await client.join(run.id);
    assert.equal(joined.room, run.channel);
    assert.equal(joined.offset, 2);
    assert.equal(joined.resync.snapshot.job.id, run.id);
    await run.report();
    await client.reached(run.channel, 3);
    const update = client.events.find(({ body }) => body.channel === run.channel).body;
    assert.deepEqual(Object.keys(update).sort(), [
      "channel",
      "data",
      "event_id",
      "job_id",
      "offset",
      "sequence",
      "timestamp",
      "type",
      "user_id",
    ]);
    assert.equal(update.type, "job.status.changed");
    assert.equal(update.data.progress, 2 / 10_000);
    client.close();
  });

  it("shows everyone what is theirs and nothing else", async () => {
    const [ada, bob] = [someone(), someone()];
    const [adas, bobs] = [await connect(gateway.url, token(ada)), await connect(gateway.url, token(bob))];
    const run = await gateway.running(ada);
    const refused = await bobs.join(run.id);
    assert.equal(refused.joined, false);
    assert.equal(refused.error.code, "not_found");
    const resumed = await bobs.ask("resume", { channels: { [run.channel]: 0, [`user:${ada}`]: 0 } });
    for (const answer of Object.values(resumed.channels)) assert.equal(answer.error.code, "not_found");
    await adas.reached(`user:${ada}`, 2);
    await gateway.submit(bob);
    await bobs.reached(`user:${bob}`, 1);
    assert.deepEqual(
      bobs.events.filter(({ body }) => body.user_id !== bob),
      [],
    );
    adas.close();
    bobs.close();
  });

  it("ends when the room is left", async () => {
    const user = someone();
    const client = await connect(gateway.url, token(user));
    const run = await gateway.running(user);
    await client.join(run.id, 2);
    assert.deepEqual(await client.ask("leave_job_channel", { jobId: run.id }), { left: true, room: run.channel });
    await run.report();
    await client.reached(`user:${user}`, 3);
    assert.deepEqual(client.offsets(run.channel), []);
    client.close();
  });

  it("is timed from submit to screen by acks", async () => {
    const user = someone();
    const client = await connect(gateway.url, token(user));
    await client.ask("resume", { channels: { [`user:${user}`]: 0 }, acks: true });
    client.socket.on("job_update", (_update, ack) => ack?.());
    const before = await gateway.metric("submit_to_screen_seconds_count");
    await gateway.submit(user);
    await client.reached(`user:${user}`, 1);
    // The answer to anything asked after the ack says that the ack has arrived.
    await client.ask("leave_job_channel", { jobId: "0196f0c4-0000-7000-8000-000000000001" });
    assert.ok((await gateway.metric("submit_to_screen_seconds_count")) > before);
    client.close();
  });
});

describe("the token's end", () => {
  it("is announced and kept", async () => {
    const user = someone();
    const client = await connect(gateway.url, token(user, "user", 3));
    const { at } = await client.event("auth_expiring");
    assert.equal(await client.disconnected(), "io server disconnect");
    const late = Date.now() - Date.parse(at);
    assert.ok(late >= 0 && late < 1_000, `${late} ms`);
    assert.equal(client.socket.active, false, "it does not come back by itself");
    client.close();
  });

  it("is put off by auth_refresh", async () => {
    const user = someone();
    const client = await connect(gateway.url, token(user, "user", 3));
    const { at } = await client.event("auth_expiring");
    const other = await client.ask("auth_refresh", { token: token(someone()) });
    assert.equal(other.error.code, "other_user");
    const answer = await client.ask("auth_refresh", { token: token(user) });
    assert.equal(answer.refreshed, true);
    // Nothing can be awaited for something not to happen: the old end, and a little more.
    await new Promise((resolve) => setTimeout(resolve, Date.parse(at) - Date.now() + 200));
    await gateway.submit(user);
    await client.reached(`user:${user}`, 1);
    client.close();
  });
});
