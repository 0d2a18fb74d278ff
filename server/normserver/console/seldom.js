/** What is asked for again whenever something is new, but not more often than so; the newest is never missed. */

export class Seldom {
  /**
   * @param {number} apart milliseconds between two askings
   * @param {() => Promise<void>} ask
   */
  constructor(apart, ask) {
    this.apart = apart;
    this.ask = ask;
    this.began = -apart;
  }

  /** There is this now. */
  news(version) {
    this.newest = version;
    if (this.timer === undefined && version !== this.asked) this.#wait();
  }

  /** No more. */
  close() {
    this.closed = true;
    clearTimeout(this.timer);
  }

  #wait() {
    const wait = Math.max(0, this.apart - (performance.now() - this.began));
    this.timer = setTimeout(() => this.#go(), wait);
  }

  async #go() {
    this.began = performance.now();
    this.asked = this.newest;
    await this.ask();
    this.timer = undefined;
    if (!this.closed && this.newest !== this.asked) this.#wait();
  }
}
