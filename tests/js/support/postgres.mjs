// A Postgres of a test, and the outbox in it.
import { execFile, execFileSync } from "node:child_process";
import { chownSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { promisify } from "node:util";
import { end, freePort, ready, start, tollgate } from "./processes.mjs";

const run = promisify(execFile);

/** Where Debian keeps the servers' programs: not in PATH, and the newest last. */
function programs() {
  const root = "/usr/lib/postgresql";
  const [newest] = readdirSync(root).sort((a, b) => b - a);
  return path.join(root, newest, "bin");
}

/** Postgres does not run as root: Debian's package has brought a user. */
function unprivileged() {
  if (process.getuid() !== 0) return {};
  const id = (what) => Number(execFileSync("id", [what, "postgres"]));
  return { uid: id("-u"), gid: id("-g") };
}

/** A server on a free port, with one database; everybody on this machine may do everything in it. */
export class Postgres {
  static async start() {
    const postgres = new Postgres();
    try {
      await postgres.#begin();
    } catch (error) {
      await postgres.close();
      throw error;
    }
    return postgres;
  }

  async #begin() {
    const user = unprivileged();
    this.folder = mkdtempSync(path.join(tmpdir(), "tollgate-postgres-"));
    const data = path.join(this.folder, "data");
    mkdirSync(data);
    if (user.uid !== undefined) [this.folder, data].forEach((one) => chownSync(one, user.uid, user.gid));

    const bin = programs();
    const options = { cwd: this.folder, ...user };
    await run(path.join(bin, "initdb"), ["-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale", "-N"], options);
    this.port = await freePort();
    const settings = ["listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off"].flatMap((one) => ["-c", one]);
    this.child = start(path.join(bin, "postgres"), ["-D", data, "-p", this.port, ...settings], options);
    await ready(this.child, "Postgres", () => this.child.said.includes("ready to accept connections"));
  }

  get url() {
    return this.urlOf("postgres");
  }

  urlOf(role) {
    return `postgres://${role}@127.0.0.1:${this.port}/postgres`;
  }

  /** What SQL answers, without decoration: a line for each row, `|` between columns. */
  async sql(text) {
    const { stdout } = await run("psql", ["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", text, this.url]);
    return stdout.trim();
  }

  /** Has the outbox made, as `tollgate relay sql | psql` does. */
  async migrate() {
    const { stdout } = await run(tollgate(), ["relay", "sql"]);
    const file = path.join(this.folder, "outbox.sql");
    writeFileSync(file, stdout);
    await run("psql", ["-X", "-q", "-v", "ON_ERROR_STOP=1", "-f", file, this.url]);
  }

  async close() {
    // Its own processes end with it.
    await end(this.child, "SIGQUIT");
    rmSync(this.folder, { recursive: true, force: true });
  }
}
