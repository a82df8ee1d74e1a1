// Lost connections and restarted gateways: what was missed is there, exactly once, in order.
import assert from "node:assert/strict";
import { after, before, it } from "node:test";
import { closeAll, connect, range } from "./client.mjs";
import { Gateway, someone, token } from "./gateway.mjs";
import { Proxy } from "./proxy.mjs";

/** @type {Gateway} */
let gateway;
before(async () => (gateway = await Gateway.start()));
after(() => {
  closeAll();
  return gateway.close();
});

/** A client that resumes its channels after every reconnect, as a page does. */
async function follower(url, user, channels, options) {
  const client = await connect(url, token(user), options);
  client.got = Object.fromEntries(Object.keys(channels).map((name) => [name, []]));
  client.resyncs = [];
  const take = (update) => {
    const got = client.got[update.channel];
    // Clients drop what they have: an update may come live before the answer that has it too.
    if (got !== undefined && !got.includes(update.offset)) got.push(update.offset);
  };
  const last = (name) => client.got[name].at(-1) ?? channels[name];
  // What comes between connecting and the answer is kept until the answer is in.
  let held = [];
  const resume = async () => {
    const { channels: answers } = await client.ask("resume", {
      channels: Object.fromEntries(Object.keys(channels).map((name) => [name, last(name)])),
    });
    for (const [name, answer] of Object.entries(answers)) {
      assert.equal(answer.joined, true, JSON.stringify(answer.error));
      if (answer.resync) client.resyncs.push({ channel: name, ...answer.resync });
      for (const update of answer.events) take(update);
    }
    const waiting = held;
    held = null;
    for (const update of waiting) take(update);
  };
  client.socket.on("job_update", (update) => (held === null ? take(update) : held.push(update)));
  client.socket.on("disconnect", () => (held = []));
  const resumeAgain = async () => {
    try {
      await resume();
    } catch (error) {
      // Cut once more before the answer came: the next connection asks again.
      if (!/has been disconnected/.test(error.message)) throw error;
    }
  };
  client.socket.on("connect", () => void resumeAgain());
  await resume();
  client.follows = (name, offset) => client.until(`${name} at ${offset}`, () => last(name) >= offset);
  // until() looks again with every event; an answer is none.
  client.caughtUp = async (name, offset) => {
    while (last(name) < offset) {
      if (!client.socket.connected) await client.connected();
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
  };
  return client;
}

// Nobody tells the gateway that a polling client is cut off: its sessions count among the five
// of a user until their heartbeat is missed, so that it may be cut off three times in a moment.
for (const [transports, rounds] of [
  [["websocket"], 5],
  [["polling"], 3],
]) {
  it(`a connection cut again and again misses nothing (${transports})`, async () => {
    const user = someone();
    const run = await gateway.running(user);
    const proxy = await Proxy.to(gateway.url);
    const channels = { [run.channel]: 2, [`user:${user}`]: 2 };
    const client = await follower(proxy.url, user, channels, { transports });
    for (let round = 0; round < rounds; round += 1) {
      await run.report(5);
      proxy.cut();
      await run.report(5);
      proxy.mend();
      await run.report(5);
    }
    await client.caughtUp(run.channel, run.head);
    await client.caughtUp(`user:${user}`, run.head);
    assert.deepEqual(client.got[run.channel], range(3, run.head));
    assert.deepEqual(client.got[`user:${user}`], range(3, run.head));
    assert.deepEqual(client.resyncs, []);
    client.close();
    await proxy.close();
  });
}

for (const end of ["stop", "kill"]) {
  it(`a gateway that is restarted (${end}) is no gap`, { skip: Gateway.shared }, async () => {
    const user = someone();
    const run = await gateway.running(user);
    const client = await follower(gateway.url, user, { [run.channel]: 2 });
    await run.report(10);
    const gone = client.disconnected();
    await gateway[end]();
    assert.match(await gone, /transport/, "so that the client comes back by itself");
    await gateway.start();
    await run.report(10);
    await client.caughtUp(run.channel, run.head);
    assert.deepEqual(client.got[run.channel], range(3, run.head));
    assert.deepEqual(client.resyncs, []);
    client.close();
  });
}

it("too much missed is told, with a snapshot", async () => {
  const user = someone();
  const run = await gateway.running(user);
  await run.report(510);
  const client = await connect(gateway.url, token(user));
  const joined = await client.join(run.id, 2);
  assert.equal(joined.resync.from, 2);
  assert.equal(joined.resync.to, run.head);
  assert.equal(joined.resync.snapshot.job.id, run.id);
  assert.deepEqual(joined.events, []);
  const near = await client.join(run.id, run.head - 500);
  assert.deepEqual(
    near.events.map((update) => update.offset),
    range(run.head - 499, run.head),
  );
  client.close();
});
