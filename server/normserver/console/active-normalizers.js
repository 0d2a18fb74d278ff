/** Normalizers that changed not long ago, and how fast. */

import { h, rows, say, show } from "./dom.js";
import { ago, count, counted, moment, NOTHING, rate } from "./format.js";
import { empty, named, pageOf, panel, row, table } from "./panel.js";
import { secondsSince } from "./server-clock.js";
import { steady } from "./steady.js";

const FEW = 10;
/** Who changed within so many seconds is changing. */
export const ACTIVE_SECONDS = 30;

export class ActiveNormalizers {
  constructor() {
    const { node, aside } = panel("Changing now");
    const { node: grid, body } = table("Normalizers that changed last", [
      ["Normalizer"],
      ["Contributions", "number", "a second, over half a minute or so"],
      ["Rows", "number wide-only"],
      ["Version", "number wide-only"],
      ["Changed", "number"],
    ]);
    this.body = body;
    this.grid = grid;
    this.nothing = empty("Nothing has changed since the server was started.");
    this.all = h("button", { type: "button", class: "quiet more", on: { click: () => this.#more() } });
    this.order = steady(
      (one) => one.name,
      (one) => one.contributionsPerSecond,
    );
    aside.append(h("a", { href: "#/normalizers" }, "All normalizers"));
    node.append(grid, this.nothing, this.all);
    this.node = node;
    this.shown = FEW;
  }

  /** Show them. */
  show(normalizers) {
    this.normalizers = normalizers;
    const active = normalizers.filter((one) => isActive(one));
    const idle = normalizers.filter((one) => !isActive(one));
    const ordered = [...this.order(active), ...idle];
    const most = Math.max(...normalizers.map((one) => one.contributionsPerSecond), 1e-9);
    rows(
      this.body,
      ordered.slice(0, this.shown),
      (one) => one.name,
      made,
      (line, one) => update(line, one, most),
    );
    show(this.grid, ordered.length > 0);
    show(this.nothing, ordered.length === 0);
    show(this.all, ordered.length > FEW);
    say(this.all, this.shown === FEW ? `Show all ${count(ordered.length)}` : "Show fewer");
  }

  #more() {
    this.shown = this.shown === FEW ? Infinity : FEW;
    this.show(this.normalizers);
  }
}

/** Whether one is changing. */
export const isActive = (one) => secondsSince(one.updateTime) < ACTIVE_SECONDS;

function made(one) {
  const line = row("", "number bar-cell", "number wide-only", "number wide-only", "number muted");
  const features = h("span", { class: "muted wide-only" });
  line.cells[0].append(h("a", { href: pageOf(one.name), class: "row-link" }, named(one.name)), features);
  const bar = h("span", { class: "bar-fill", "aria-hidden": "true" });
  const figure = h("span");
  line.cells[1].append(bar, figure);
  return { ...line, features, bar, figure };
}

function update(line, one, most) {
  const [, , total, version, changed] = line.cells;
  say(line.features, counted(Number(one.numFeatures), "feature"));
  const active = isActive(one);
  say(line.figure, active ? `${rate(one.contributionsPerSecond)} /s` : NOTHING);
  line.bar.style.width = `${active ? (100 * one.contributionsPerSecond) / most : 0}%`;
  say(total, count(one.count));
  say(version, count(Number(one.version)));
  say(changed, ago(secondsSince(one.updateTime)));
  changed.title = moment(Date.parse(one.updateTime));
}
