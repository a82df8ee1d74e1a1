// What clients may not do, tried with the npm client.
import assert from "node:assert/strict";
import { after, before, it } from "node:test";
import { closeAll, connect } from "./client.mjs";
import { Gateway, someone, token } from "./gateway.mjs";

/** @type {Gateway} */
let gateway;
before(async () => (gateway = await Gateway.start()));
after(() => {
  closeAll();
  return gateway.close();
});

it("ten thousand rooms are a hundred", async () => {
  const user = someone();
  const client = await connect(gateway.url, token(user));
  const body = { agent: "external", dataset_id: "data" };
  const ids = [];
  for (let i = 0; i < 20; i += 1) {
    const jobs = await gateway.call(token(user), "POST", "/jobs/batch", { jobs: Array.from({ length: 500 }, () => body) });
    for (const job of jobs.items ?? jobs) ids.push(job.id);
  }
  assert.equal(ids.length, 10_000);
  let joined = 0;
  const codes = new Map();
  for (const id of ids) {
    const answer = await client.join(id, 1);
    if (answer.joined) joined += 1;
    else codes.set(answer.error.code, (codes.get(answer.error.code) ?? 0) + 1);
  }
  assert.equal(joined, 100);
  assert.deepEqual([...codes], [["too_many_rooms", 9_900]]);
  client.close();
});

it("ten thousand joins at once harm nobody", async () => {
  const user = someone();
  const [client, witness] = [await connect(gateway.url, token(user)), await connect(gateway.url, token(user))];
  const id = await gateway.submit(user);
  const answers = await Promise.all(Array.from({ length: 10_000 }, () => client.join(id, 1)));
  const codes = new Set(answers.filter((answer) => !answer.joined).map((answer) => answer.error.code));
  assert.ok(answers.some((answer) => answer.joined));
  assert.deepEqual([...codes], ["too_many_requests"]);
  await witness.reached(`user:${user}`, 1);
  client.close();
  witness.close();
});

it("binary junk ends the connection that sent it, and only that", async () => {
  const user = someone();
  const witness = await connect(gateway.url, token(user));
  for (const junk of [Buffer.alloc(0), Buffer.from([0xff, 0xfe, 0]), Buffer.alloc(100_000, 7)]) {
    const client = await connect(gateway.url, token(user), { reconnection: false });
    const gone = client.disconnected();
    client.socket.emit("join_job_channel", junk, () => assert.fail("junk was answered"));
    assert.match(await gone, /transport/);
    client.close();
  }
  await gateway.submit(user);
  await witness.reached(`user:${user}`, 1);
  witness.close();
});

it("garbage is answered with an error", async () => {
  const client = await connect(gateway.url, token(someone()));
  for (const payload of [null, 7, "x", [], {}, { jobId: 1 }, { jobId: "../x" }, { jobId: null, lastOffset: {} }]) {
    const answer = await client.ask("join_job_channel", payload);
    assert.equal(answer.error.code, "invalid_payload", JSON.stringify(payload));
  }
  assert.equal((await client.ask("no_such_event", {})).error.code, "unknown_event");
  client.close();
});

it("a message over the limit ends the connection", async () => {
  const client = await connect(gateway.url, token(someone()), { reconnection: false });
  const gone = client.disconnected();
  client.socket.emit("seen", { x: "x".repeat(1_200_000) });
  assert.match(await gone, /transport/);
  client.close();
});
