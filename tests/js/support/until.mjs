import assert from "node:assert/strict";
import { setTimeout as sleep } from "node:timers/promises";

const WAIT_MS = 30_000;

/** Waits for something true; when it is not in time, the last error and `said` tell why. */
export async function until(what, check, said = () => "", ms = WAIT_MS) {
  const late = Date.now() + ms;
  for (let error; ; await sleep(20)) {
    try {
      const found = await check();
      if (found) return found;
    } catch (e) {
      error = e;
    }
    if (Date.now() > late) assert.fail(`${what}: not in time\n${error ?? ""}\n${await said()}`);
  }
}
