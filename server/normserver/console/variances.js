/** How the features' variances are spread. */

import { colour } from "./colours.js";
import { h, say, show } from "./dom.js";
import { count, counted, number } from "./format.js";
import { panel } from "./panel.js";
import { axis, Plot } from "./plot.js";
import { quantile } from "./stats.js";
import uPlot from "./vendor/uPlot.esm.js";

const LEAST_FEATURES = 8;
const MOST_BINS = 36;
// Variances that differ by more are binned by their logarithms.
const APART = 30;

export class VariancesPanel {
  constructor() {
    const { node } = panel("Variances");
    this.chart = h("div", { class: "chart", "aria-hidden": "true" });
    this.caption = h("p", { class: "caption" });
    node.append(this.chart, this.caption);
    this.node = node;
    this.plot = null;
  }

  /** Show statistics. */
  show(stats) {
    show(this.node, stats.features >= LEAST_FEATURES);
    if (this.node.hidden) return;
    this.bins = binned(stats.var);
    const data = [this.bins.centres, this.bins.counts];
    if (this.plot && this.log === this.bins.log) this.plot.set(data);
    else this.#make(data);
    this.summary = summarized(stats, this.bins);
    this.#read(this.plot.plot.cursor.idx);
  }

  close() {
    this.plot?.close();
  }

  #make(data) {
    this.plot?.close();
    this.log = this.bins.log;
    const value = (at) => (this.log ? number(10 ** at, 2) : number(at, 3));
    this.plot = new Plot(
      this.chart,
      {
        padding: [10, 10, 0, 0],
        cursor: { y: false, x: false, points: { show: false }, drag: { x: false, y: false, setScale: false } },
        scales: {
          x: { time: false, range: () => [this.bins.from, this.bins.to] },
          y: { range: (_, __, max) => [0, Math.max(1, max)] },
        },
        series: [
          {},
          {
            paths: uPlot.paths.bars({ size: [0.92, 100], gap: 1, radius: 0.12 }),
            fill: () => colour("accent", 0.55),
            width: 0,
            points: { show: false },
          },
        ],
        axes: [
          axis({
            size: 26,
            space: 56,
            grid: { show: false },
            incrs: this.log ? [1, 2, 3, 4, 5, 6, 8, 10, 20, 50, 100] : undefined,
            values: (_, at) => at.map(value),
          }),
          axis({
            size: 40,
            space: 30,
            incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 1e4],
            values: (_, at) => at.map(count),
          }),
        ],
        hooks: { setCursor: [(plot) => this.#read(plot.cursor.idx)] },
      },
      data,
    );
  }

  #read(index) {
    const some = index !== null && index !== undefined && this.bins.counts[index] !== undefined;
    const edge = (step) => {
      const at = this.bins.from + step * this.bins.wide;
      return number(this.log ? 10 ** at : at, 3);
    };
    const those = () => counted(this.bins.counts[index], "feature is", "features are");
    say(this.caption, some ? `${those()} between ${edge(index)} and ${edge(index + 1)}.` : (this.summary ?? ""));
  }
}

/** Equal bins, by the logarithm where the variances are far apart; constants, whose variance is 0, stand apart then. */
function binned(variances) {
  const positive = variances.filter((value) => value > 0 && Number.isFinite(value));
  const [least, most] = [quantile(positive, 0), quantile(positive, 1)];
  const log = most > APART * least;
  const values = log ? positive.map(Math.log10) : variances.filter(Number.isFinite);
  let [from, to] = [quantile(values, 0), quantile(values, 1)];
  if (!(to > from)) [from, to] = [(from || 0) - 0.5, (from || 0) + 0.5];
  const bins = Math.max(6, Math.min(MOST_BINS, Math.ceil(2 * Math.sqrt(values.length))));
  const wide = (to - from) / bins;
  const counts = new Array(bins).fill(0);
  for (const value of values) counts[Math.min(bins - 1, Math.floor((value - from) / wide))] += 1;
  return {
    log,
    from,
    to,
    wide,
    counts,
    centres: counts.map((_, bin) => from + (bin + 0.5) * wide),
    constant: variances.length - positive.length,
  };
}

function summarized({ var: variances, features }, { log, constant }) {
  const median = quantile(variances, 0.5);
  const said = [
    `Half of ${counted(features, "feature")} are below ${number(median)}${log ? "; the axis is logarithmic" : ""}.`,
  ];
  if (constant) said.push(`${counted(constant, "feature is", "features are")} constant.`);
  return said.join(" ");
}
