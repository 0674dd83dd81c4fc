import net from "node:net";

/** The way to a port. What passes can be heard, and the way can be cut, or vanish without a word. */
export class Relay {
  #pairs = new Set();
  #waiting = [];
  #gone = false;

  /** `heard` gets what clients send. */
  static async start(to, { heard } = {}) {
    const relay = new Relay();
    relay.server = net.createServer({ allowHalfOpen: true }, (client) => {
      client.on("error", () => {});
      const begin = () => relay.#carry(client, to, heard);
      // A client's first packet is sent again until the network is back.
      if (relay.#gone) relay.#waiting.push(begin);
      else begin();
    });
    await new Promise((resolve) => relay.server.listen(0, "127.0.0.1", resolve));
    relay.port = relay.server.address().port;
    relay.http = `http://127.0.0.1:${relay.port}`;
    relay.ws = `ws://127.0.0.1:${relay.port}`;
    return relay;
  }

  #carry(client, to, heard) {
    const server = net.connect({ port: to, host: "127.0.0.1", allowHalfOpen: true });
    const pair = { client, server, silent: false };
    this.#pairs.add(pair);
    if (heard) client.on("data", heard);
    for (const [socket, other] of [[client, server], [server, client]]) {
      socket.pipe(other);
      // An orderly end is passed on by the pipe, after what is still on its way.
      socket.on("error", () => pair.silent || other.destroy());
      socket.on("close", () => client.destroyed && server.destroyed && this.#pairs.delete(pair));
    }
  }

  /** Resets all connections that are open. */
  cut() {
    for (const { client, server } of this.#pairs) [client, server].forEach((socket) => socket.resetAndDestroy());
  }

  /**
   * What is open now is silent from here on, for ever: no byte passes, the server's end is read no more, and nobody
   * is told, whatever becomes of the other side.
   */
  vanish() {
    this.#gone = true;
    for (const pair of this.#pairs) {
      pair.silent = true;
      pair.client.unpipe(pair.server);
      pair.server.unpipe(pair.client);
    }
  }

  /** New connections pass again. */
  heal() {
    this.#gone = false;
    this.#waiting.splice(0).forEach((begin) => begin());
  }

  close() {
    for (const { client, server } of this.#pairs) [client, server].forEach((socket) => socket.destroy());
    this.server.close();
  }
}
