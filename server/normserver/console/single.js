/** A normalizer of one feature: its figures, large, and where they lie. */

import { h, say } from "./dom.js";
import { number } from "./format.js";
import { panel } from "./panel.js";

export class SinglePanel {
  constructor() {
    const { node } = panel("What it has seen", { className: "single" });
    this.mean = h("span", { class: "huge" });
    this.std = h("span", { class: "huge soft" });
    this.band = h("span", { class: "range-band" });
    this.dot = h("span", { class: "range-dot" });
    this.min = h("span");
    this.max = h("span");
    this.caption = h("p", { class: "caption" });
    node.append(
      h("p", { class: "equation" }, this.mean, h("span", { class: "huge faint" }, "±"), this.std),
      h("div", { class: "range", "aria-hidden": "true" }, this.band, this.dot),
      h("p", { class: "range-ends" }, h("span", {}, "min ", this.min), h("span", {}, "max ", this.max)),
      this.caption,
    );
    this.node = node;
  }

  /** Show statistics. */
  show({ mean: [mean], std: [std], var: [variance], min: [min], max: [max], ddof }) {
    const place = (value) => Math.min(1, Math.max(0, max > min ? (value - min) / (max - min) : 0.5));
    say(this.mean, number(mean, 5));
    say(this.std, number(std, 4));
    say(this.min, number(min));
    say(this.max, number(max));
    this.band.style.left = `${100 * place(mean - std)}%`;
    this.band.style.right = `${100 * (1 - place(mean + std))}%`;
    this.dot.style.left = `${100 * place(mean)}%`;
    say(
      this.caption,
      `Mean and standard deviation; the variance is ${number(variance)}, ${ddof ? "unbiased" : "of the population"}.`,
    );
  }

  close() {}
}
