/** The exact values, a page of features at a time: nothing is in a drawing alone. */

import { h, mark, rows, say, show } from "./dom.js";
import { count, exact } from "./format.js";
import { panel, row, table } from "./panel.js";

const PAGE = 20;

export class ValuesPanel {
  constructor() {
    const { node, aside } = panel("Exact values", { className: "values" });
    this.find = h("input", {
      type: "number",
      min: 0,
      inputmode: "numeric",
      placeholder: "feature",
      "aria-label": "Find a feature by its number",
    });
    this.find.addEventListener("input", () => this.#seek());
    this.before = h(
      "button",
      { type: "button", class: "quiet", "aria-label": "features before", on: { click: () => this.#turn(-1) } },
      "←",
    );
    this.after = h(
      "button",
      { type: "button", class: "quiet", "aria-label": "features after", on: { click: () => this.#turn(1) } },
      "→",
    );
    this.where = h("p", { class: "muted", "aria-live": "polite" });
    aside.append(this.where, this.before, this.after, this.find);
    const { node: grid, body } = table("Exact values by feature", [
      ["Feature", "number"],
      ["Mean", "exact"],
      ["Deviation", "exact"],
      ["Variance", "exact"],
      ["Min", "exact"],
      ["Max", "exact"],
      ["Rows", "exact"],
    ]);
    this.grid = grid;
    this.body = body;
    node.append(
      h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Table of exact values" }, grid),
    );
    this.node = node;
    this.first = 0;
    this.found = -1;
  }

  /** Show statistics. */
  show(stats) {
    this.stats = stats;
    const { features } = stats;
    const last = Math.min(features, this.first + PAGE);
    const shown = Array.from({ length: Math.max(0, last - this.first) }, (_, index) => this.first + index);
    rows(
      this.body,
      shown,
      (feature) => feature,
      made,
      (line, feature) => this.#update(line, feature),
    );
    const paged = features > PAGE;
    // Where all features have seen the same rows, the page says how many above.
    this.grid.classList.toggle("same-rows", stats.count.length < 2);
    for (const element of [this.find, this.before, this.after, this.where]) show(element, paged);
    say(this.where, `${count(this.first)} to ${count(last - 1)} of ${count(features)}`);
    this.before.disabled = this.first === 0;
    this.after.disabled = last >= features;
    mark(this.find, "max", features - 1);
  }

  /** Go to a feature. */
  go(feature) {
    if (!(feature >= 0 && feature < this.stats.features)) return;
    this.found = feature;
    this.first = Math.floor(feature / PAGE) * PAGE;
    this.show(this.stats);
  }

  /** Go there, and bring it into sight. */
  reveal(feature) {
    this.go(feature);
    const smooth = !matchMedia("(prefers-reduced-motion: reduce)").matches;
    this.node.scrollIntoView({ block: "nearest", behavior: smooth ? "smooth" : "auto" });
  }

  close() {}

  #seek() {
    const feature = Number(this.find.value);
    if (this.find.value !== "" && Number.isInteger(feature)) this.go(feature);
  }

  #turn(pages) {
    this.found = -1;
    this.first = Math.max(0, this.first + pages * PAGE);
    this.show(this.stats);
  }

  #update(line, feature) {
    const { mean, std, var: variance, min, max, count: rowsOf } = this.stats;
    [mean, std, variance, min, max].forEach((values, index) => say(line.cells[index + 1], exact(values[feature])));
    say(line.cells[6], exact(rowsOf.length === 1 ? rowsOf[0] : rowsOf[feature]));
    mark(line.node, "data-found", feature === this.found);
  }
}

function made(feature) {
  const line = row("number", "exact", "exact", "exact", "exact", "exact", "exact");
  mark(line.node, "data-feature", feature);
  say(line.cells[0], String(feature));
  return line;
}
