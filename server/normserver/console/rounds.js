/** Rounds that wait for members: who is there, who is missing, and how long it may still take. */

import { h, rows, say, show } from "./dom.js";
import { count } from "./format.js";
import { empty, pageOf, panel } from "./panel.js";

// A round of a group that runs well is open for milliseconds: to show those would only flicker.
const NOTICED = 0.5;
const MOST_DOTS = 64;
const MOST_IDS = 12;

export class RoundsPanel {
  constructor() {
    const { node } = panel("Rounds that wait");
    this.list = h("ul", { class: "rounds" });
    this.nothing = empty();
    node.append(this.list, this.nothing);
    this.node = node;
    this.timer = setInterval(() => this.#count(), 200);
    this.rounds = [];
  }

  /** Show them, as they were `received` (performance.now()). */
  show(all, received) {
    this.received = received;
    this.rounds = all.filter((round) => round.waitedSeconds >= NOTICED);
    const brief = all.length - this.rounds.length;
    rows(this.list, this.rounds, (round) => `${round.group} ${round.round}`, made, update);
    show(this.list, this.rounds.length > 0);
    show(this.nothing, this.rounds.length === 0 || brief > 0);
    const others = this.rounds.length ? "others" : "rounds";
    say(
      this.nothing,
      brief > 0
        ? `${count(brief)} ${brief === 1 ? others.slice(0, -1) : others} under way, in time`
        : "No round waits for anybody.",
    );
    this.#count();
  }

  close() {
    clearInterval(this.timer);
  }

  #count() {
    const passed = (performance.now() - (this.received ?? 0)) / 1000;
    for (const round of this.rounds) {
      const { left, bar } = round.row ?? {};
      if (!left) continue;
      const remaining = Math.max(0, round.remainingSeconds - passed);
      say(left, `${remaining.toFixed(remaining < 10 ? 1 : 0)} s left`);
      bar.value = remaining / (round.waitedSeconds + round.remainingSeconds || 1);
    }
  }
}

function made() {
  const group = h("span", { class: "name" });
  const number = h("span", { class: "muted" });
  const left = h("span", { class: "left" });
  const bar = h("progress", { max: 1, "aria-label": "time left" });
  const dots = h("div", { class: "dots", "aria-hidden": "true" });
  const present = h("p");
  const missing = h("p", { class: "ids" });
  const into = h("a", { class: "muted" });
  const node = h(
    "li",
    {},
    h("div", { class: "round-head" }, group, number, left),
    bar,
    dots,
    present,
    missing,
    h("p", { class: "into" }, into),
  );
  return { node, group, number, left, bar, dots, present, missing, into };
}

function update(row, round) {
  round.row = row;
  const { present = [], missing = [], size } = round;
  say(row.group, round.group);
  say(row.number, `round ${count(Number(round.round))}`);
  say(row.present, `${present.length} of ${size} present${missing.length ? ", missing" : ""}`);
  const kinds = [...present.map(() => "there"), ...missing.map(() => "missing")];
  while (kinds.length < Math.min(size, MOST_DOTS)) kinds.push("unknown");
  rows(
    row.dots,
    kinds.slice(0, MOST_DOTS).map((kind, index) => ({ kind, index })),
    ({ index }) => index,
    () => ({ node: h("i") }),
    dot,
  );
  rows(
    row.missing,
    missing.slice(0, MOST_IDS),
    (id) => id,
    absent,
    () => {},
  );
  const strangers = size - present.length - missing.length;
  const others = [];
  if (missing.length > MOST_IDS) others.push(`${missing.length - MOST_IDS} more`);
  if (strangers > 0) others.push(`${strangers} not there yet`);
  say(row.into, round.normalizer ? `into ${round.normalizer}` : "");
  if (round.normalizer) row.into.setAttribute("href", pageOf(round.normalizer));
  row.missing.dataset.more = others.join(", ");
}

const dot = (row, { kind }) => {
  if (row.node.className !== kind) row.node.className = kind;
};

const absent = (id) => ({ node: h("code", {}, id) });
