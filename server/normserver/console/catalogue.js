/** Normalizers in the order of their names, read page by page as far as they are looked at. */

import { read } from "./api.js";

// The first page is to be there at once, the others before one has scrolled to them.
const FIRST_PAGE = 100;
const PAGE = 1000;
// Names have nothing else: a search for it finds none, and the server need not be asked.
const NAMABLE = /^[A-Za-z0-9._/-]{0,200}$/;

export class Catalogue {
  /**
   * @param {string} contains only names that have this somewhere
   * @param {string} prefix only names that begin so
   * @param {() => void} changed called when there is more, or something went wrong
   */
  constructor(contains, prefix, changed) {
    this.contains = contains;
    this.prefix = prefix;
    this.changed = changed;
    this.normalizers = [];
    this.total = 0;
    this.next = "";
    this.complete = false;
    this.error = null;
    this.answered = false;
    this.abort = new AbortController();
  }

  /** Read on until there are so many, or all. */
  async reach(needed) {
    if (this.reading || this.complete) return;
    if (!NAMABLE.test(this.contains)) {
      this.complete = true;
      this.answered = true;
      this.changed();
      return;
    }
    this.reading = true;
    try {
      while (!this.complete && this.normalizers.length < needed) await this.#page();
      this.error = null;
    } catch (error) {
      if (error.name === "AbortError") return;
      this.error = error;
      this.answered = true;
      this.changed();
    } finally {
      this.reading = false;
    }
  }

  /** Nobody looks at it any more. */
  close() {
    this.abort.abort();
  }

  async #page() {
    const fields = {
      contains: this.contains,
      prefix: this.prefix,
      page_size: this.normalizers.length ? PAGE : FIRST_PAGE,
      page_token: this.next,
    };
    const {
      normalizers = [],
      nextPageToken = "",
      totalCount,
    } = await read("ListNormalizers", fields, this.abort.signal);
    this.normalizers.push(...normalizers);
    this.next = nextPageToken;
    this.complete = nextPageToken === "";
    this.total = Math.max(Number(totalCount ?? 0), this.normalizers.length);
    if (this.complete) this.total = this.normalizers.length;
    this.answered = true;
    this.changed();
  }
}
