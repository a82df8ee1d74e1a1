// A TCP proxy that cuts connections, as a train in a tunnel does.
import { connect, createServer } from "node:net";

export class Proxy {
  #server;
  #pairs = new Set();
  #target;
  #open = true;
  url;

  static async to(url) {
    const proxy = new Proxy();
    proxy.#target = new URL(url);
    proxy.#server = createServer((client) => proxy.#forward(client));
    await new Promise((resolve) => proxy.#server.listen(0, "127.0.0.1", resolve));
    proxy.url = `http://127.0.0.1:${proxy.#server.address().port}`;
    return proxy;
  }

  #forward(client) {
    client.on("error", () => client.destroy());
    if (!this.#open) return client.destroy();
    const server = connect(Number(this.#target.port), this.#target.hostname);
    const pair = { client, server };
    this.#pairs.add(pair);
    const end = () => {
      client.destroy();
      server.destroy();
      this.#pairs.delete(pair);
    };
    for (const side of [client, server]) side.setNoDelay(true).on("error", end).on("close", end);
    client.pipe(server).pipe(client);
  }

  /** Breaks every connection; new ones are refused until mend(). */
  cut() {
    this.#open = false;
    for (const { client, server } of this.#pairs) {
      client.resetAndDestroy();
      server.resetAndDestroy();
    }
  }

  mend() {
    this.#open = true;
  }

  async close() {
    this.cut();
    await new Promise((resolve) => this.#server.close(resolve));
  }
}
