/** All normalizers: a search, and a list of which only what is in sight is in the page. */

import { activity } from "./activity.js";
import { Catalogue } from "./catalogue.js";
import { h, mark, rows, say, show } from "./dom.js";
import { ago, count, moment } from "./format.js";
import { pageOf } from "./panel.js";
import { secondsSince } from "./server-clock.js";
import { kindOf, sizeOf } from "./spec.js";

const TYPING = 120;
// Rows above and below what is in sight, so that scrolling does not outrun them.
const SPARE = 12;
// So many more are read before they are come to.
const AHEAD = 50;
// Browsers cannot show an element much higher than this; who has more will search.
const HIGHEST = 16_000_000;

// Where the person was, for when he comes back.
let remembered = { query: "", scroll: 0, name: "" };

/** The address of the list as the person left it. */
export const lastSearch = () => addressOf(remembered.query);

const addressOf = (query) => (query ? `#/normalizers?q=${encodeURIComponent(query)}` : "#/normalizers");

/** Open the page. Returns how to close it. */
export function openNormalizers(main, { query, focus }) {
  const page = new NormalizersPage(query);
  main.append(page.node);
  page.open(focus);
  return () => page.close();
}

class NormalizersPage {
  constructor(query) {
    this.query = query;
    this.search = h("input", {
      type: "search",
      id: "search",
      placeholder: "Part of a name",
      autocomplete: "off",
      spellcheck: "false",
      "aria-label": "Find normalizers by a part of their names",
      "aria-controls": "normalizers",
    });
    this.search.value = query;
    this.prefix = h("select", {
      "aria-label": "the beginning of names",
      hidden: true,
      on: { change: () => this.#ask() },
    });
    this.total = h("p", { class: "muted", role: "status" });
    this.list = h("div", { class: "list", id: "normalizers", role: "rowgroup" });
    this.nothing = h("p", { class: "empty", hidden: true });
    const heads = [
      ["Name"],
      ["Kind"],
      ["Size", "number"],
      ["Rows", "number"],
      ["Batches", "number"],
      ["Version", "number"],
      ["Changed", "number"],
    ];
    this.grid = h(
      "div",
      { role: "table", "aria-label": "Normalizers", class: "listing" },
      h(
        "div",
        { role: "rowgroup" },
        h(
          "div",
          { role: "row", class: "list-head" },
          heads.map(([title, kind]) => h("span", { role: "columnheader", class: kind }, title)),
        ),
      ),
      this.list,
    );
    this.node = h(
      "article",
      {},
      h("div", { class: "lead" }, h("div", { class: "state" }, h("h1", { tabindex: "-1" }, "Normalizers"), this.total)),
      h("div", { class: "search-line" }, this.prefix, this.search),
      this.grid,
      this.nothing,
    );
  }

  open(focus) {
    const back = remembered.query === this.query ? remembered : null;
    this.listeners = [
      [window, "scroll", () => this.#soon()],
      [window, "resize", () => this.#soon()],
      [this.search, "input", () => this.#typed()],
      [this.node, "keydown", (event) => this.#key(event)],
    ];
    for (const [target, event, listener] of this.listeners)
      target.addEventListener(event, listener, { passive: event === "scroll" });
    this.unsubscribe = activity.subscribe(({ latest }) => this.#learn(latest));
    this.#ask(back);
    if (focus || !back) this.search.focus();
  }

  close() {
    remembered = { query: this.query, scroll: scrollY, name: remembered.name };
    this.closed = true;
    this.catalogue.close();
    this.unsubscribe();
    clearTimeout(this.typing);
    for (const [target, event, listener] of this.listeners) target.removeEventListener(event, listener);
  }

  /** Begin with this search; `back` is where the person was when he left. */
  #ask(back = null) {
    this.catalogue?.close();
    this.back = back;
    const catalogue = new Catalogue(this.query, this.prefix.value, () => this.catalogue === catalogue && this.#draw());
    this.catalogue = catalogue;
    catalogue.reach(back ? Math.ceil((back.scroll + innerHeight) / this.#height()) : 1);
  }

  #typed() {
    clearTimeout(this.typing);
    this.wanted = "";
    this.typing = setTimeout(() => this.#search(), TYPING);
  }

  #search() {
    clearTimeout(this.typing);
    this.typing = undefined;
    this.query = this.search.value.trim();
    // The address tells what is searched for, so that it can be kept and shared; it is not a page to go back to.
    history.replaceState(null, "", addressOf(this.query));
    scrollTo(0, 0);
    this.#ask();
  }

  /** Go to the first that was found, or open it, once it is known: who types fast is ahead of the answer. */
  #go() {
    if (!this.wanted || this.typing !== undefined || !this.catalogue.answered) return;
    const key = this.wanted;
    this.wanted = "";
    if (!this.catalogue.normalizers.length) return;
    this.#focus(0);
    if (key === "Enter" && this.#focused() === 0) document.activeElement.click();
  }

  #soon() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = undefined;
      if (!this.closed) this.#draw();
    });
  }

  #height() {
    return Number.parseFloat(getComputedStyle(this.grid).getPropertyValue("--row")) || 44;
  }

  #draw() {
    const { normalizers, total, error, answered } = this.catalogue;
    if (!answered) return;
    const height = this.#height();
    const shown = Math.min(total, Math.floor(HIGHEST / height));
    this.list.style.height = `${shown * height}px`;
    mark(this.grid, "aria-rowcount", total + 1);
    say(this.total, error ? "" : this.query ? `${count(total)} with “${this.query}”` : count(total));
    show(this.grid, total > 0);
    show(this.nothing, total === 0);
    say(
      this.nothing,
      error ? error.message : this.query ? `No name has “${this.query}” in it.` : "There are none yet.",
    );
    if (this.back) this.#return(height);
    const above = Math.max(0, -this.list.getBoundingClientRect().top);
    const first = Math.max(0, Math.floor(above / height) - SPARE);
    const last = Math.min(shown, Math.ceil((above + innerHeight) / height) + SPARE);
    this.catalogue.reach(last + AHEAD);
    const inSight = [];
    for (let index = first; index < Math.min(last, normalizers.length); index += 1) inSight.push(index);
    const focused = this.#focused();
    // What has the focus stays in the page, or the keyboard would lose its place.
    if (focused !== null && !inSight.includes(focused)) inSight.push(focused);
    // What is marked in a name is part of a row: another search makes others.
    rows(
      this.list,
      inSight,
      (index) => `${this.query} ${normalizers[index].name}`,
      (index) => this.#made(index),
      (line, index) => this.#update(line, index, height),
    );
    this.#go();
  }

  /** Where the person was: the same row at the same place, with the focus. */
  #return(height) {
    const { scroll, name } = this.back;
    const index = this.catalogue.normalizers.findIndex((one) => one.name === name);
    if (index < 0 && !this.catalogue.complete && this.catalogue.normalizers.length * height < scroll) return;
    this.back = null;
    scrollTo(0, scroll);
    if (index >= 0) this.#focus(index);
  }

  #made(index) {
    const { name } = this.catalogue.normalizers[index];
    const link = h("a", { href: pageOf(name), class: "row-link" }, highlighted(name, this.query));
    link.addEventListener("click", () => (remembered.name = name));
    const frozen = h("span", { class: "badge", hidden: true }, "frozen");
    const cells = [
      "muted kind",
      "number muted size",
      "number rows",
      "number batches",
      "number version",
      "number muted changed",
    ].map((kind) => h("span", { role: "cell", class: kind }));
    const node = h(
      "div",
      { role: "row", class: "list-row" },
      h("span", { role: "cell", class: "list-name" }, link, frozen),
      cells,
    );
    return { node, link, frozen, cells };
  }

  #update(line, index, height) {
    const one = this.catalogue.normalizers[index];
    const [kind, size, total, batches, version, changed] = line.cells;
    line.node.style.transform = `translateY(${index * height}px)`;
    line.node.dataset.index = index;
    mark(line.node, "aria-rowindex", index + 2);
    say(kind, kindOf(one.spec));
    say(size, sizeOf(one.spec));
    say(total, one.count > 0 ? count(one.count) : "–");
    say(batches, Number(one.numBatches) > 0 ? count(Number(one.numBatches)) : "–");
    say(version, count(Number(one.version)));
    say(changed, ago(secondsSince(one.updateTime)));
    changed.title = moment(Date.parse(one.updateTime));
    show(line.frozen, Boolean(one.frozen));
  }

  /** What changes meanwhile is known from the feed. */
  #learn({ normalizers: active = [], server = {} }) {
    this.#prefixes(server.readablePrefixes ?? [""]);
    if (!this.catalogue) return;
    const fresh = new Map(active.map((one) => [one.name, one]));
    for (const one of this.catalogue.normalizers) {
      const news = fresh.get(one.name);
      if (news && Number(news.version) > Number(one.version))
        Object.assign(one, { version: news.version, count: news.count, updateTime: news.updateTime });
    }
    this.#draw();
  }

  /** Who may read some names alone asks for those. */
  #prefixes(prefixes) {
    if (prefixes.includes("") || !prefixes.length || this.prefix.options.length) return;
    this.prefix.replaceChildren(...prefixes.map((prefix) => h("option", { value: prefix }, prefix)));
    show(this.prefix, prefixes.length > 1);
    this.#ask();
  }

  #key(event) {
    const move = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10 }[event.key];
    if (event.target === this.search && (event.key === "Enter" || event.key === "ArrowDown")) {
      event.preventDefault();
      this.wanted = event.key;
      if (this.typing !== undefined) this.#search();
      this.#go();
    } else if (event.key === "Escape") {
      this.#escape(event);
    } else if (move && event.target !== this.prefix) {
      event.preventDefault();
      this.#step(move);
    }
  }

  #escape(event) {
    if (event.target !== this.search) this.search.focus();
    else if (this.search.value) {
      this.search.value = "";
      this.#typed();
    } else return;
    event.preventDefault();
    event.stopPropagation();
  }

  #step(move) {
    const focused = this.#focused();
    if (focused === null) {
      if (move > 0) this.#focus(0);
    } else if (focused + move < 0) this.search.focus();
    else this.#focus(focused + move);
  }

  #focused() {
    const line = document.activeElement?.closest?.(".list-row");
    return line ? Number(line.dataset.index) : null;
  }

  /** Move to a row, and the page with it. */
  #focus(index) {
    const { normalizers } = this.catalogue;
    const target = Math.min(index, normalizers.length - 1);
    if (target < 0) return;
    const height = this.#height();
    const top = this.list.getBoundingClientRect().top + target * height;
    const [least, most] = [120, innerHeight - height - 16];
    if (top < least) scrollBy(0, top - least);
    else if (top > most) scrollBy(0, top - most);
    this.#draw();
    this.list.querySelector(`[data-index="${target}"] a`)?.focus({ preventScroll: true });
  }
}

/** A name: where it is, and, stronger, what it is called there; what was searched for is marked. */
function highlighted(name, query) {
  const at = query ? name.toLowerCase().indexOf(query.toLowerCase()) : -1;
  const [from, to] = at < 0 ? [0, 0] : [at, at + query.length];
  const cut = name.lastIndexOf("/") + 1;
  return [h("span", { class: "path" }, piece(name, 0, cut, from, to)), ...piece(name, cut, name.length, from, to)];
}

function piece(text, start, end, from, to) {
  const [low, high] = [Math.min(Math.max(from, start), end), Math.max(Math.min(to, end), start)];
  if (low >= high) return [text.slice(start, end)];
  return [text.slice(start, low), h("mark", {}, text.slice(low, high)), text.slice(high, end)];
}
