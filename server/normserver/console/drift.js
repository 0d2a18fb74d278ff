/** How far features have moved since a snapshot, those that moved most first. */

import { read } from "./api.js";
import { h, rows, say, show } from "./dom.js";
import { counted, number } from "./format.js";
import { empty, panel, row, table } from "./panel.js";
import { Seldom } from "./seldom.js";

const FEW = 12;
const MANY = 200;
// Asked for again, while versions come, after so long.
const APART = 5_000;
// As drift is commonly judged: a tenth of a deviation is noise, half of one is seen by every model.
const SLIGHT = 0.1;
const STRONG = 0.5;

export class DriftPanel {
  /** @param {string} name */
  constructor(name) {
    this.name = name;
    const { node, aside } = panel("Drift");
    this.choice = h("select", { "aria-label": "the snapshot to compare with", on: { change: () => this.#ask() } });
    this.against = h("label", { class: "muted" }, "since ", this.choice);
    aside.append(this.against);
    this.verdict = h("p", { class: "verdict" });
    const { node: grid, body } = table("Features that moved most", [
      ["Feature", "number"],
      ["Mean moved", "bar-head", "(mean − mean then) / deviation then"],
      ["Variance", "bar-head", "variance / variance then"],
      ["Divergence", "bar-head", "symmetric Kullback-Leibler divergence of two Gaussians, in nats"],
    ]);
    this.body = body;
    this.grid = grid;
    this.more = h("button", { type: "button", class: "quiet more", on: { click: () => this.#toggle() } });
    this.nothing = empty("There is no snapshot to compare with.");
    node.append(this.verdict, grid, this.more, this.nothing);
    this.node = node;
    this.limit = FEW;
    this.again = new Seldom(APART, () => this.#ask());
    show(this.grid, false);
    show(this.more, false);
  }

  /** These snapshots there are; the newest is compared with unless another was chosen. */
  offer(snapshots) {
    const chosen = this.choice.value;
    const newest = snapshots.slice().sort((a, b) => Date.parse(b.createTime) - Date.parse(a.createTime));
    this.choice.replaceChildren(...newest.map(({ tag }) => h("option", { value: tag }, tag)));
    if (newest.some(({ tag }) => tag === chosen)) this.choice.value = chosen;
    show(this.against, newest.length > 0);
    show(this.nothing, newest.length === 0);
    if (newest.length) this.#ask();
    else this.#clear();
  }

  /** Compare with this one. */
  choose(tag) {
    this.choice.value = tag;
    this.#ask();
  }

  /** There is a new version: compare again soon. */
  refresh(version) {
    this.again.news(version);
  }

  close() {
    this.closed = true;
    this.again.close();
  }

  #toggle() {
    this.limit = this.limit === FEW ? MANY : FEW;
    this.#ask();
  }

  #clear() {
    show(this.grid, false);
    show(this.more, false);
    say(this.verdict, "");
  }

  async #ask() {
    const tag = this.choice.value;
    if (!tag) return;
    try {
      // One more than is shown tells whether there are more.
      const answer = await read("CompareSnapshots", { normalizer: this.name, base_tag: tag, limit: this.limit + 1 });
      if (!this.closed && tag === this.choice.value) this.#draw(answer);
    } catch (error) {
      if (this.closed) return;
      this.#clear();
      say(this.verdict, error.message);
    }
  }

  #draw({ features = [], baseVersion, version }) {
    const drifts = features.map((one) => ({
      feature: one.feature,
      shift: Number(one.meanShift),
      ratio: Number(one.varRatio),
      divergence: Number(one.symmetricKl),
    }));
    const shown = drifts.slice(0, this.limit);
    const most = {
      shift: largest(
        shown.map((one) => Math.abs(one.shift)),
        1,
      ),
      octaves: largest(
        shown.map((one) => Math.abs(Math.log2(one.ratio))),
        1,
      ),
      divergence: largest(
        shown.map((one) => one.divergence),
        0.1,
      ),
    };
    rows(
      this.body,
      shown,
      (one) => one.feature,
      made,
      (line, one) => update(line, one, most),
    );
    show(this.grid, shown.length > 0);
    show(this.more, drifts.length > FEW);
    say(this.more, this.limit === FEW ? "Show more" : "Show fewer");
    say(this.verdict, judged(drifts, Number(version) - Number(baseVersion)));
  }
}

const largest = (values, least) => Math.max(least, ...values.filter(Number.isFinite));

function judged(drifts, versions) {
  if (!drifts.length) return "";
  const farthest = drifts.reduce((most, one) => (Math.abs(one.shift) > Math.abs(most.shift) ? one : most));
  const far = Math.abs(farthest.shift);
  const verdict = far >= STRONG ? "Moved" : far >= SLIGHT ? "Moved a little" : "Steady";
  const passed = counted(versions, "version");
  return `${verdict} over ${passed}: feature ${farthest.feature} by ${hundredths(far)} deviations.`;
}

function made({ feature }) {
  const line = row("number", "bar", "bar", "bar");
  say(line.cells[0], String(feature));
  const bars = line.cells.slice(1).map((cell, index) => {
    const fill = h("span", { class: "fill" });
    const text = h("span", { class: "bar-text" });
    cell.append(h("span", { class: index < 2 ? "track both" : "track", "aria-hidden": "true" }, fill), text);
    return { fill, text };
  });
  return { ...line, bars };
}

function update({ node, bars }, { shift, ratio, divergence }, most) {
  node.classList.toggle("strong", Math.abs(shift) >= STRONG);
  both(bars[0], shift / most.shift, `${shift >= 0.005 ? "+" : ""}${hundredths(shift)} σ`);
  both(bars[1], Math.log2(ratio) / most.octaves, `× ${hundredths(ratio)}`);
  bars[2].fill.style.width = `${share(divergence / most.divergence)}%`;
  say(bars[2].text, hundredths(divergence));
}

/** A bar to the left or right of the middle. */
function both({ fill, text }, part, said) {
  const length = share(Math.abs(part)) / 2;
  fill.style.width = `${length}%`;
  fill.style.left = part < 0 ? `${50 - length}%` : "50%";
  say(text, said);
}

// What is smaller is noise.
function hundredths(value) {
  const text = Math.abs(value) < 100 ? Math.abs(value).toFixed(2) : number(Math.abs(value), 3);
  return value < 0 && Number(text) !== 0 ? `−${text}` : text;
}

const share = (part) => (Number.isNaN(part) ? 0 : Math.min(1, part) * 100);
