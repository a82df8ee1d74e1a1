// One gateway process on a directory of its own, and what tests do to it over HTTP.
//
// GATEWAY_BIN   the binary; a gateway is started for each test file
// GATEWAY_URL and GATEWAY_JWT_SECRET   use this running gateway instead; tests that stop
//               and start theirs are skipped
// GATEWAY__...  settings of a gateway that is started, as of `scripts/brokers fresh`: one test file at
//               a time, since these gateways would be instances of one
import { spawn } from "node:child_process";
import { createHmac, randomUUID } from "node:crypto";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";

export const PATIENCE_MS = 20_000;
/** Settings from outside. */
const GIVEN = Object.fromEntries(Object.entries(process.env).filter(([name]) => name.startsWith("GATEWAY__")));
const SECRET = process.env.GATEWAY_JWT_SECRET ?? "a secret for tests that is long enough, and only for tests";

export class Gateway {
  #dir;
  #process = null;
  #settings;
  url;

  static async start(settings = {}) {
    const gateway = new Gateway();
    gateway.#settings = settings;
    if (process.env.GATEWAY_URL) {
      gateway.url = process.env.GATEWAY_URL.replace(/\/$/, "");
    } else {
      gateway.#dir = await mkdtemp(join(tmpdir(), "gateway-socketio-"));
      await gateway.start();
    }
    return gateway;
  }

  /** Tests that need a gateway of their own say so to node:test. */
  static get shared() {
    return process.env.GATEWAY_URL ? "needs a gateway of its own: set GATEWAY_BIN instead of GATEWAY_URL" : false;
  }

  /** Starts the process, after stop() or kill() again at the same address. */
  async start() {
    const binary = process.env.GATEWAY_BIN;
    if (!binary) throw new Error("set GATEWAY_BIN to the event-gateway binary");
    const listen = this.url === undefined ? "127.0.0.1:0" : new URL(this.url).host;
    const child = spawn(binary, ["serve"], {
      cwd: this.#dir,
      env: {
        PATH: process.env.PATH,
        ...GIVEN,
        GATEWAY__HTTP__LISTEN: listen,
        GATEWAY__DATA__DIR: join(this.#dir, "data"),
        GATEWAY__AUTH__JWT_SECRET: SECRET,
        GATEWAY__LOG__FORMAT: "json",
        ...this.#settings,
      },
      stdio: ["ignore", "pipe", "pipe"],
    });
    this.#process = child;
    const said = [];
    this.url = await new Promise((resolve, reject) => {
      const timer = setTimeout(() => reject(new Error(`the gateway does not listen:\n${said.join("\n")}`)), PATIENCE_MS);
      const read = (line) => {
        said.push(line);
        const address = /listening on (http:\/\/[0-9.:]+)/.exec(line);
        if (address) {
          clearTimeout(timer);
          resolve(address[1]);
        }
      };
      createInterface({ input: child.stdout }).on("line", read);
      createInterface({ input: child.stderr }).on("line", read);
      child.once("exit", (code) => reject(new Error(`the gateway ended with ${code}:\n${said.join("\n")}`)));
    });
  }

  async #end(signal) {
    const child = this.#process;
    if (child === null || child.exitCode !== null || child.signalCode !== null) return;
    const ended = new Promise((resolve) => child.once("exit", resolve));
    child.kill(signal);
    await ended;
  }

  stop() {
    return this.#end("SIGTERM");
  }

  kill() {
    return this.#end("SIGKILL");
  }

  async close() {
    await this.kill();
    if (this.#dir) await rm(this.#dir, { recursive: true, force: true });
  }

  async call(token, method, path, body) {
    const response = await fetch(`${this.url}/api/v1${path}`, {
      method,
      headers: { authorization: `Bearer ${token}`, "content-type": "application/json" },
      body: body === undefined ? undefined : JSON.stringify(body),
      signal: AbortSignal.timeout(PATIENCE_MS),
    });
    const text = await response.text();
    if (!response.ok) throw new Error(`${method} ${path}: ${response.status} ${text}`);
    return text === "" ? null : JSON.parse(text);
  }

  /** A queued job: offset 1 of its channel. */
  async submit(user) {
    const job = await this.call(token(user), "POST", "/jobs", { agent: "external", dataset_id: "data" });
    return job.id;
  }

  /** A job that a worker runs. Every report() after it is one more update. */
  async running(user) {
    const id = await this.submit(user);
    const worker = token("worker", "worker");
    // Others' jobs are claimed on the way, and left alone.
    for (;;) {
      const { items } = await this.call(worker, "POST", "/worker/claim", { max: 500 });
      if (items.some((item) => item.id === id)) break;
    }
    const run = new Run(this, id, worker);
    await run.report();
    return run;
  }

  /** One figure of /metrics. */
  async metric(name) {
    const text = await (await fetch(`${this.url}/metrics`)).text();
    const line = text.split("\n").find((l) => l.startsWith(`event_gateway_${name} `));
    return line === undefined ? 0 : Number(line.split(" ")[1]);
  }
}

class Run {
  #steps = 0;

  constructor(gateway, id, worker) {
    this.gateway = gateway;
    this.id = id;
    this.channel = `job:${id}`;
    this.worker = worker;
  }

  /** The offset of the latest update. */
  get head() {
    return 1 + this.#steps;
  }

  async report(count = 1) {
    for (let i = 0; i < count; i += 1) {
      this.#steps += 1;
      const body = { attempt: 1, status: "RUNNING", progress: this.#steps / 10_000 };
      await this.gateway.call(this.worker, "POST", `/jobs/${this.id}/status`, body);
    }
  }
}

/** A user that no other test has: limits are counted by user. */
export const someone = () => `user-${randomUUID().slice(0, 8)}`;

export function token(user, role = "user", ttlSeconds = 3600) {
  const encode = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");
  const now = Math.floor(Date.now() / 1000);
  const signed = `${encode({ alg: "HS256", typ: "JWT" })}.${encode({ sub: user, roles: [role], iat: now, exp: now + ttlSeconds })}`;
  return `${signed}.${createHmac("sha256", SECRET).update(signed).digest("base64url")}`;
}
