/** How a normalizer came to be what it is: its features' means and deviations over time. */

import { read } from "./api.js";
import { colour } from "./colours.js";
import { h, say, show } from "./dom.js";
import { clock, count, counted, number, span, tick } from "./format.js";
import { empty, panel } from "./panel.js";
import { axis, line, Plot } from "./plot.js";
import { Seldom } from "./seldom.js";

// Asked for again, while versions come, after so long.
const APART = 3_000;
// What the time's axis may go by: seconds, minutes, hours, days.
const STEPS = [1, 2, 5, 10, 15, 30]
  .concat([1, 2, 5, 10, 15, 30].map((minutes) => minutes * 60))
  .concat([1, 2, 3, 6, 12].map((hours) => hours * 3600))
  .concat([1, 2, 5, 10, 30, 90, 365].map((days) => days * 86400));

export class HistoryPanel {
  /**
   * @param {string} name
   * @param {number} features
   * @param {(producers: any[]) => void} told who contributed comes with the same answer
   */
  constructor(name, features, told) {
    this.name = name;
    this.told = told;
    const { node } = panel("Over time");
    this.single = features === 1;
    this.charts = (this.single ? ["Mean", "Deviation"] : ["Means", "Deviations"]).map((title) => {
      const chart = h("div", { class: "chart", "aria-hidden": "true" });
      return { title, chart, plot: null, node: h("div", {}, h("h3", {}, title), chart) };
    });
    this.pair = h(
      "div",
      { class: "pair" },
      this.charts.map((one) => one.node),
    );
    this.caption = h("p", { class: "caption" });
    this.nothing = empty("This server has seen one version alone so far.");
    node.append(this.pair, this.caption, this.nothing);
    this.node = node;
    this.points = [];
    this.again = new Seldom(APART, () => this.#ask());
  }

  /** There is a new version: ask soon what it is like. */
  refresh(version) {
    this.again.news(version);
  }

  close() {
    this.closed = true;
    this.again.close();
    for (const { plot } of this.charts) plot?.close();
  }

  async #ask() {
    try {
      const { points = [], producers = [] } = await read("GetHistory", { normalizer: this.name });
      if (this.closed) return;
      this.points = points;
      this.told(producers);
      this.#draw();
    } catch (error) {
      if (!this.closed) say(this.nothing, error.message);
    }
  }

  #draw() {
    const { points } = this;
    const enough = points.length > 1;
    show(this.pair, enough);
    show(this.caption, enough);
    show(this.nothing, !enough);
    if (!enough) return;
    const x = points.map((point) => Date.parse(point.time) / 1000);
    this.charts.forEach((one, index) => {
      const field = index === 0 ? "mean" : "std";
      const data = [
        x,
        ...["median", "lowerQuartile", "upperQuartile", "min", "max"].map((part) =>
          points.map((point) => finite(point[field]?.[part])),
        ),
      ];
      if (one.plot) one.plot.set(data);
      else one.plot = new Plot(one.chart, this.#options(), data);
    });
    const [first, last] = [points[0], points.at(-1)];
    const passed = `${counted(Number(last.version) - Number(first.version), "version")} in ${span(x.at(-1) - x[0])}`;
    this.summary = this.single
      ? `${passed}.`
      : `${passed}: the median over features, a band for the middle half of them, lines for the ends.`;
    this.#read();
  }

  #options() {
    const outer = () => line("muted", { width: 1, alpha: 0.5 });
    return {
      padding: [10, 24, 0, 0],
      cursor: {
        y: false,
        sync: { key: `history ${this.name}` },
        drag: { x: false, y: false, setScale: false },
        points: { size: 5 },
      },
      scales: { x: { time: true } },
      bands: [{ series: [3, 2], fill: () => colour("accent", 0.16) }],
      series: [{}, line("accent"), line("accent", { width: 0 }), line("accent", { width: 0 }), outer(), outer()],
      axes: [
        axis({
          size: 26,
          space: 64,
          grid: { show: false },
          incrs: STEPS,
          values: (_, at, __, ___, apart) => at.map((value) => tick(value, apart)),
        }),
        axis({ size: 52, space: 32, values: (_, at) => at.map((value) => number(value, 3)) }),
      ],
      hooks: { setCursor: [(plot) => this.#hover(plot.cursor.idx)] },
    };
  }

  #hover(index) {
    this.hovered = index;
    this.#read();
  }

  #read() {
    const point = this.points[this.hovered ?? -1];
    if (!point) {
      say(this.caption, this.summary ?? "");
      return;
    }
    const time = clock(Date.parse(point.time));
    const medians = `mean ${number(Number(point.mean.median))}, deviation ${number(Number(point.std.median))}`;
    say(
      this.caption,
      `Version ${count(Number(point.version))} at ${time}: ${counted(point.count, "row")}, ${medians}.`,
    );
  }
}

const finite = (value) => (Number.isFinite(Number(value)) ? Number(value) : null);
