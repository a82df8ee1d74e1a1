// A TCP proxy between browser and gateway that the test can cut and mend: the lost connection.
import { once } from "node:events";
import net from "node:net";

export class Proxy {
  /** @type {Set<net.Socket>} */
  #open = new Set();
  /** @type {net.Server | null} */
  #server = null;
  #target;
  #port = 0;

  /** @param {string} target The gateway's URL. */
  constructor(target) {
    this.#target = new URL(target);
  }

  get url() {
    return `http://127.0.0.1:${this.#port}`;
  }

  /** Listens; after a cut on the same port as before. */
  async mend() {
    const server = net.createServer((near) => {
      const far = net.connect(Number(this.#target.port), this.#target.hostname);
      for (const socket of [near, far]) {
        socket.setNoDelay(true);
        this.#open.add(socket);
        socket.once("close", () => this.#open.delete(socket));
        socket.on("error", () => {
          near.destroy();
          far.destroy();
        });
      }
      near.pipe(far);
      far.pipe(near);
    });
    server.listen(this.#port, "127.0.0.1");
    await once(server, "listening");
    const address = server.address();
    if (address === null || typeof address === "string") throw new Error("the proxy has no port");
    this.#port = address.port;
    this.#server = server;
  }

  /** Ends every connection in the middle of what it carries, and takes no new one. */
  async cut() {
    const server = this.#server;
    if (server === null) return;
    this.#server = null;
    const closed = once(server, "close");
    server.close();
    for (const socket of this.#open) socket.destroy();
    await closed;
  }
}
