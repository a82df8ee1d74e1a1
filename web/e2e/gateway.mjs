// A gateway to test against: the one at GATEWAY_URL, or GATEWAY_BIN spawned on a port and a data
// directory of its own.
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { fileURLToPath } from "node:url";

const START_LIMIT_MS = 60_000;
const STOP_LIMIT_MS = 20_000;

/** The root of the repository. */
export const ROOT = fileURLToPath(new URL("../../", import.meta.url));

/**
 * @typedef {object} Gateway
 * @property {string} url
 * @property {() => string} log What it has written so far; empty for a gateway that was there before.
 * @property {() => Promise<void>} stop
 */

/** @returns {Promise<Gateway>} */
export async function startGateway() {
  const url = process.env["GATEWAY_URL"];
  if (url !== undefined && url !== "")
    return { url: url.replace(/\/+$/, ""), log: () => "", stop: async () => undefined };
  const bin = process.env["GATEWAY_BIN"];
  if (bin === undefined || bin === "")
    throw new Error("Set GATEWAY_URL to a running gateway, or GATEWAY_BIN to the program to start.");
  return await spawnGateway(resolve(process.env["INIT_CWD"] ?? process.cwd(), bin));
}

/**
 * @param {string} bin
 * @returns {Promise<Gateway>}
 */
async function spawnGateway(bin) {
  const data = await mkdtemp(join(tmpdir(), "event-gateway-page-"));
  const child = spawn(bin, ["serve"], {
    cwd: ROOT,
    env: { ...process.env, GATEWAY__HTTP__LISTEN: "127.0.0.1:0", GATEWAY__DATA__DIR: data },
    stdio: ["ignore", "pipe", "pipe"],
  });
  let log = "";
  const url = await new Promise((found, fail) => {
    const late = setTimeout(
      () => fail(new Error(`${bin} named no address within ${START_LIMIT_MS / 1000} s:\n${log}`)),
      START_LIMIT_MS,
    );
    /** @param {Buffer} chunk */
    const read = (chunk) => {
      log += chunk.toString();
      // Colours of a pretty log may stand inside the address.
      const at = /http:\/\/127\.0\.0\.1:(\d+)/.exec(log.replace(/\u001b\[[0-9;]*m/g, ""));
      if (at === null) return;
      clearTimeout(late);
      found(at[0]);
    };
    child.stdout.on("data", read);
    child.stderr.on("data", read);
    child.once("error", fail);
    child.once("exit", (code) => fail(new Error(`${bin} ended with ${code} before it listened:\n${log}`)));
  }).catch(async (problem) => {
    child.kill("SIGKILL");
    await rm(data, { recursive: true, force: true });
    throw problem;
  });
  return {
    url,
    log: () => log,
    stop: async () => {
      if (child.exitCode === null && child.signalCode === null) {
        const ended = once(child, "exit");
        child.kill("SIGTERM");
        const kill = setTimeout(() => child.kill("SIGKILL"), STOP_LIMIT_MS);
        await ended;
        clearTimeout(kill);
      }
      await rm(data, { recursive: true, force: true });
    },
  };
}

/**
 * A client of the REST API for what the test does beside the page.
 * @param {string} base
 * @param {string} token
 */
export function client(base, token) {
  /**
   * @param {string} method
   * @param {string} path
   * @param {unknown} [body]
   * @returns {Promise<any>}
   */
  const call = async (method, path, body) => {
    const answer = await fetch(`${base}/api/v1${path}`, {
      method,
      headers: {
        authorization: `Bearer ${token}`,
        ...(body === undefined ? {} : { "content-type": "application/json" }),
      },
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
      signal: AbortSignal.timeout(15_000),
    });
    const text = await answer.text();
    if (!answer.ok) throw new Error(`${method} ${path} answered ${answer.status}: ${text}`);
    return text === "" ? null : JSON.parse(text);
  };
  /**
   * Every item of a list, page after page.
   * @param {string} path
   * @returns {Promise<any[]>}
   */
  const all = async (path) => {
    const items = [];
    let cursor = null;
    do {
      const query = new URLSearchParams({ limit: "100", ...(cursor === null ? {} : { cursor }) });
      const page = await call("GET", `${path}?${query}`);
      items.push(...page.items);
      cursor = page.next_cursor;
    } while (cursor !== null);
    return items;
  };
  /**
   * Every event of a job in sequence order, as the page reads them.
   * @param {string} id
   * @returns {Promise<any[]>}
   */
  const events = async (id) => {
    const items = [];
    let after = 0;
    for (;;) {
      const page = await call("GET", `/jobs/${id}/events?after=${after}&limit=100`);
      items.push(...page.items);
      const last = Math.max(after, ...page.items.filter((/** @type {any} */ e) => e.aggregate_type === "job").map((/** @type {any} */ e) => e.sequence));
      if (page.next_cursor === null || last === after) return items;
      after = last;
    }
  };
  return {
    get: (/** @type {string} */ path) => call("GET", path),
    post: (/** @type {string} */ path, /** @type {unknown} */ body) => call("POST", path, body),
    all,
    events,
  };
}

/**
 * A token of development mode.
 * @param {string} base
 * @param {{ user?: string, role?: string }} as
 * @returns {Promise<{ token: string, user_id: string, roles: string[] }>}
 */
export async function signIn(base, as) {
  const answer = await fetch(`${base}/api/v1/session/dev`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(as),
  });
  if (!answer.ok) throw new Error(`development sign-in answered ${answer.status}: ${await answer.text()}`);
  return /** @type {any} */ (await answer.json());
}
