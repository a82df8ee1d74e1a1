// A socket with what it has received, and promises for what is still to come.
import { io } from "socket.io-client";
import { PATIENCE_MS } from "./gateway.mjs";

const open = new Set();

/** Ends every client: a socket that a failed test left behind would keep Node running. */
export function closeAll() {
  for (const client of open) client.close();
}

/** Connects; rejects with the server's refusal. */
export async function connect(url, token, options = {}) {
  const client = new Client(url, token, options);
  await client.connected();
  return client;
}

export class Client {
  constructor(url, token, options = {}) {
    this.token = token;
    this.socket = io(`${url}/messaging`, {
      auth: (give) => give({ token: this.token }),
      transports: ["websocket"],
      forceNew: true,
      reconnectionDelay: 50,
      reconnectionDelayMax: 200,
      ...options,
    });
    open.add(this);
    this.events = [];
    this.waiting = [];
    this.socket.onAny((name, body) => {
      this.events.push({ name, body });
      this.waiting = this.waiting.filter((check) => !check());
    });
  }

  connected() {
    if (this.socket.connected) return Promise.resolve();
    return within("a connection", (resolve, reject) => {
      this.socket.once("connect", resolve);
      this.socket.once("connect_error", (error) => {
        // A refusal, or nobody will try again.
        if (!this.socket.active || error.data || this.socket.io.opts.reconnection === false) reject(error);
      });
    });
  }

  disconnected() {
    return within("a disconnect", (resolve) => this.socket.once("disconnect", resolve));
  }

  ask(event, payload) {
    return this.socket.timeout(PATIENCE_MS).emitWithAck(event, payload);
  }

  join(jobId, lastOffset, more = {}) {
    return this.ask("join_job_channel", { jobId, lastOffset, ...more });
  }

  /** Waits until what was received fits. */
  until(what, fits) {
    return within(what, (resolve) => {
      const check = () => {
        const found = fits(this.events);
        if (found) resolve(found);
        return found;
      };
      if (!check()) this.waiting.push(check);
    });
  }

  /** The first event of this name. */
  event(name) {
    return this.until(name, (events) => events.find((event) => event.name === name)?.body);
  }

  /** Offsets of a channel as they came. */
  offsets(channel) {
    return this.events.filter(({ body }) => body?.channel === channel && body.offset !== undefined).map(({ body }) => body.offset);
  }

  reached(channel, offset) {
    return this.until(`${channel} at ${offset}`, () => this.offsets(channel).includes(offset));
  }

  close() {
    open.delete(this);
    this.socket.disconnect();
  }
}

/** A promise that says what it waited for when it was in vain. */
export function within(what, executor) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error(`waited in vain for ${what}`)), PATIENCE_MS);
    const done = (settle) => (value) => {
      clearTimeout(timer);
      settle(value);
    };
    executor(done(resolve), done(reject));
  });
}

export const range = (from, to) => Array.from({ length: Math.max(0, to - from + 1) }, (_, i) => from + i);
