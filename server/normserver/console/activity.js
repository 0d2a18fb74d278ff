/** What the server is doing, second by second: one feed for the whole page. */

import { report } from "./connection.js";
import { Feed } from "./feed.js";
import { learn } from "./server-clock.js";

/** How many seconds are shown. */
export const SECONDS = 300;
const LIMIT = 200;
// It tells every second: who says nothing for so long is gone.
const SILENCE = 6_000;

class Activity {
  constructor() {
    /** The newest message; null before the first. */
    this.latest = null;
    /** When it came, by performance.now(). */
    this.received = 0;
    /** Seconds of load, the oldest first. */
    this.load = [];
    this.listeners = new Set();
  }

  /** Begin, or begin again (with another token, for instance). */
  open() {
    this.feed?.close();
    this.feed = new Feed(
      "WatchActivity",
      { limit: LIMIT, seconds: SECONDS },
      {
        take: (message) => this.#take(message.activity),
        tell: (health) => report("activity", health),
        silence: SILENCE,
      },
    );
  }

  /** Call back with each message, and at once if there is one. Returns how to end that. */
  subscribe(listener) {
    this.listeners.add(listener);
    if (this.latest) listener(this);
    return () => this.listeners.delete(listener);
  }

  #take(activity) {
    this.latest = activity;
    this.received = performance.now();
    const fresh = (activity.load ?? []).map((load) => ({ ...load, at: Date.parse(load.time) / 1000 }));
    if (fresh.length) {
      learn(activity.load.at(-1).time);
      const first = fresh[0].at;
      const last = fresh.at(-1).at;
      this.load = this.load.filter((load) => load.at < first && load.at > last - SECONDS).concat(fresh);
    }
    for (const listener of this.listeners) listener(this);
  }
}

export const activity = new Activity();
