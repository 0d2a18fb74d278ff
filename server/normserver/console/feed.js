/**
 * A feed: what the server sends as it happens. It comes again by itself when it breaks, and says meanwhile that it is
 * not live. fetch rather than EventSource, as that can send no token.
 */

import { ApiError, listen } from "./api.js";

const FIRST_WAIT = 500;
const LONGEST_WAIT = 5_000;
// Who looks at something else for so long is not sent what he does not see.
const HIDDEN = 60_000;
// What a new try does not change: it is not there, or keeps nothing to watch.
const FINAL = new Set([400, 404, 405, 409, 412]);

/**
 * How a feed is. It is `ended` where a new try would change nothing.
 *
 * @typedef {{state: "connecting" | "live" | "waiting" | "refused" | "ended" | "paused", why: string}} Health
 */

export class Feed {
  /**
   * @param {string} method
   * @param {Record<string, any>} fields
   * @param {object} options
   * @param {(message: any) => void} options.take
   * @param {(health: Health, error?: ApiError) => void} [options.tell]
   * @param {boolean} [options.newest] of messages that come faster than the screen is drawn, take the newest alone
   * @param {number} [options.silence] milliseconds without a byte after which the connection is taken for dead
   */
  constructor(method, fields, { take, tell = () => {}, newest = false, silence = 45_000 }) {
    this.method = method;
    this.fields = fields;
    this.take = take;
    this.tell = tell;
    this.newest = newest;
    this.silence = silence;
    this.closed = false;
    this.onVisibility = () => this.#visibility();
    document.addEventListener("visibilitychange", this.onVisibility);
    this.#run();
  }

  /** End it. */
  close() {
    this.closed = true;
    document.removeEventListener("visibilitychange", this.onVisibility);
    clearTimeout(this.hiding);
    this.abort?.abort();
    this.wake?.();
  }

  async #run() {
    let wait = FIRST_WAIT;
    while (!this.closed) {
      const before = performance.now();
      const error = await this.#once();
      if (this.closed) return;
      if (this.paused) {
        this.tell({ state: "paused", why: "" });
        await this.#sleep(Infinity);
        wait = FIRST_WAIT;
        continue;
      }
      if (error instanceof ApiError && FINAL.has(error.status)) {
        this.tell({ state: "ended", why: error.message }, error);
        return;
      }
      const refused = error instanceof ApiError && (error.status === 401 || error.status === 403);
      // What went well for a while begins anew; what fails at once is tried less and less often.
      wait = performance.now() - before > LONGEST_WAIT ? FIRST_WAIT : Math.min(LONGEST_WAIT, wait * 2);
      this.tell({ state: refused ? "refused" : "waiting", why: error?.message ?? "" }, error);
      await this.#sleep(refused ? LONGEST_WAIT : wait);
    }
  }

  /** One connection, from its beginning to its end. Returns why it ended. */
  async #once() {
    this.abort = new AbortController();
    this.tell({ state: "connecting", why: "" });
    try {
      const response = await listen(this.method, this.fields, this.abort.signal);
      await this.#events(response.body.getReader());
      return new Error("the server ended it");
    } catch (error) {
      return this.silent ? new Error("the server says nothing") : error;
    } finally {
      clearTimeout(this.listening);
      this.silent = false;
    }
  }

  async #events(reader) {
    const decoder = new TextDecoder();
    let rest = "";
    this.#heard();
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      this.#heard();
      const blocks = (rest + decoder.decode(value, { stream: true })).split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) this.#event(block);
    }
  }

  #event(block) {
    const lines = block.split("\n");
    const data = lines.filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trimStart());
    if (!data.length) return;
    if (lines.some((line) => line.startsWith("event:") && line.slice(6).trim() === "error")) {
      const problem = JSON.parse(data.join("\n"));
      throw new ApiError(STATUS[problem.code] ?? 503, problem);
    }
    if (this.newest) this.#later(data.join("\n"));
    else this.#deliver(data.join("\n"));
  }

  /** Keep the text until the next frame; what comes before that takes its place, and is never parsed. */
  #later(text) {
    const due = this.text !== undefined;
    this.text = text;
    if (due) return;
    requestAnimationFrame(() => {
      const newest = this.text;
      this.text = undefined;
      if (!this.closed) this.#deliver(newest);
    });
  }

  #deliver(text) {
    this.tell({ state: "live", why: "" });
    this.take(JSON.parse(text));
  }

  #heard() {
    clearTimeout(this.listening);
    this.listening = setTimeout(() => {
      this.silent = true;
      this.abort.abort();
    }, this.silence);
  }

  #visibility() {
    clearTimeout(this.hiding);
    if (document.hidden) {
      this.hiding = setTimeout(() => {
        this.paused = true;
        this.abort?.abort();
      }, HIDDEN);
    } else {
      this.paused = false;
      this.wake?.();
    }
  }

  #sleep(milliseconds) {
    return new Promise((resolve) => {
      const timer = Number.isFinite(milliseconds) ? setTimeout(resolve, milliseconds) : undefined;
      this.wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }
}

// An error within a stream comes after the status line.
const STATUS = {
  INVALID_ARGUMENT: 400,
  UNAUTHENTICATED: 401,
  PERMISSION_DENIED: 403,
  NOT_FOUND: 404,
  FAILED_PRECONDITION: 412,
};
