/** Mean, deviation and range of each feature: marks where they are few, lines and a band where they are many. */

import { colour } from "./colours.js";
import { h, say } from "./dom.js";
import { count, number } from "./format.js";
import { panel } from "./panel.js";
import { axis, line, Plot } from "./plot.js";
import { extremes, quantile } from "./stats.js";

// So many have room for marks of their own.
const FEW = 48;
// Lines of more are drawn finer.
const MANY = 512;
// Features that differ by more than this are not seen together on a linear axis.
const APART = 300;

export class FeaturesPanel {
  /** @param {(feature: number) => void} pick called when a feature is clicked */
  constructor(pick) {
    this.pick = pick;
    const { node, aside } = panel("Features");
    this.extent = toggle("min to max", "extent-key", true, (on) => this.#extent(on));
    this.log = toggle("log", "", false, (on) => this.#scale(on));
    this.legend = h(
      "div",
      { class: "legend" },
      key("mean", "dot-key"),
      key("± one deviation", "band-key"),
      this.extent,
      this.log,
    );
    this.chart = h("div", { class: "chart tall", "aria-hidden": "true" });
    this.caption = h("p", { class: "caption" });
    aside.append(this.legend);
    node.append(this.chart, this.caption);
    this.node = node;
    this.plot = null;
  }

  /** Show statistics. */
  show(stats) {
    const first = !this.stats;
    this.stats = stats;
    if (first && isWide(stats)) press(this.log, true);
    if (this.plot && this.few !== stats.features <= FEW) this.#remake();
    if (this.plot) this.plot.set(columns(stats));
    else this.#make();
    this.#read();
  }

  close() {
    this.plot?.close();
  }

  #make() {
    this.few = this.stats.features <= FEW;
    this.plot = new Plot(this.chart, this.#options(), columns(this.stats));
  }

  #remake() {
    this.plot?.close();
    this.#make();
  }

  #options() {
    const { features } = this.stats;
    const shown = this.extent.getAttribute("aria-pressed") === "true";
    const log = this.log.getAttribute("aria-pressed") === "true";
    const bare = (more = {}) => (this.few ? { ...line("accent"), paths: () => null, ...more } : line("accent", more));
    const outer = this.few ? { ...line("muted"), paths: () => null } : line("muted", { width: 0 });
    return {
      padding: [12, 4, 0, 0],
      cursor: {
        y: false,
        drag: { x: features > 8, y: false, setScale: features > 8 },
        points: { show: !this.few },
        bind: {},
      },
      scales: {
        x: { time: false, range: (_, min, max) => (this.few ? [min - 0.6, max + 0.6] : [min, max]) },
        y: log ? logarithmic(threshold(this.stats)) : {},
      },
      bands: this.few ? [] : bands(shown),
      series: [
        {},
        bare({ width: features > MANY ? 1 : 1.5 }),
        bare({ width: 0 }),
        bare({ width: 0 }),
        { ...outer, show: shown },
        { ...outer, show: shown },
      ],
      axes: [
        axis({
          size: 26,
          space: 44,
          grid: { show: false },
          incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 1e4, 1e5],
          values: (_, at) => at.map((value) => (Number.isInteger(value) ? count(value) : "")),
        }),
        axis({
          size: 48,
          space: 36,
          splits: log ? powers(threshold(this.stats)) : undefined,
          values: (_, at) => at.map((value) => number(value, 3)),
        }),
      ],
      hooks: {
        setCursor: [() => this.#read()],
        draw: this.few ? [(plot) => marks(plot, shown)] : [],
        ready: [(plot) => this.#clicks(plot)],
      },
    };
  }

  #clicks(plot) {
    let pressed = 0;
    plot.over.addEventListener("mousedown", (event) => (pressed = event.clientX));
    plot.over.addEventListener("click", (event) => {
      const dragged = Math.abs(event.clientX - pressed) > 3;
      if (!dragged && plot.cursor.idx !== null && plot.cursor.idx !== undefined) this.pick(plot.cursor.idx);
    });
  }

  #read() {
    const index = this.plot?.plot.cursor.idx;
    const { mean, std, min, max, features } = this.stats;
    if (index === null || index === undefined || index >= features) {
      say(this.caption, summarized(this.stats));
      return;
    }
    const range = `between ${number(min[index])} and ${number(max[index])}`;
    say(this.caption, `Feature ${index}: mean ${number(mean[index])}, deviation ${number(std[index])}, ${range}.`);
  }

  #extent(on) {
    press(this.extent, on);
    this.#remake();
  }

  #scale(on) {
    press(this.log, on);
    this.#remake();
  }
}

// The wider band first: it lies below.
function bands(extent) {
  const deviation = { series: [3, 2], fill: () => colour("accent", 0.2) };
  return extent ? [{ series: [5, 4], fill: () => colour("muted", 0.14) }, deviation] : [deviation];
}

const key = (text, kind) => h("span", { class: `key ${kind}` }, text);
const press = (button, on) => button.setAttribute("aria-pressed", String(on));

function toggle(text, kind, on, change) {
  const button = h("button", { type: "button", class: `key toggle ${kind}`, "aria-pressed": String(on) }, text);
  button.addEventListener("click", () => change(button.getAttribute("aria-pressed") !== "true"));
  return button;
}

function columns({ features, mean, std, min, max }) {
  const index = Float64Array.from({ length: features }, (_, feature) => feature);
  const low = mean.map((value, feature) => value - std[feature]);
  const high = mean.map((value, feature) => value + std[feature]);
  return [index, mean, low, high, min, max].map(drawable);
}

// uPlot leaves out null alone.
const drawable = (values) =>
  values.every(Number.isFinite) ? values : Array.from(values, (value) => (Number.isFinite(value) ? value : null));

/** A bar for a deviation to each side, a dot for the mean, ticks for the ends. */
function marks(plot, extent) {
  const { ctx, data, bbox } = plot;
  const [, mean, low, high, min, max] = data;
  const ratio = devicePixelRatio;
  const step = Math.abs(plot.valToPos(1, "x", true) - plot.valToPos(0, "x", true));
  const half = Math.max(1.5 * ratio, Math.min(7 * ratio, step * 0.28));
  const y = (value) => plot.valToPos(value, "y", true);
  ctx.save();
  ctx.beginPath();
  ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
  ctx.clip();
  for (let feature = 0; feature < mean.length; feature += 1) {
    if (mean[feature] === null) continue;
    const x = plot.valToPos(feature, "x", true);
    if (extent) {
      ctx.strokeStyle = colour("muted", 0.6);
      ctx.lineWidth = ratio;
      ctx.beginPath();
      ctx.moveTo(x, y(min[feature]));
      ctx.lineTo(x, y(max[feature]));
      for (const end of [min, max]) {
        ctx.moveTo(x - half * 0.6, y(end[feature]));
        ctx.lineTo(x + half * 0.6, y(end[feature]));
      }
      ctx.stroke();
    }
    const top = y(high[feature]);
    const height = Math.max(y(low[feature]) - top, ratio);
    ctx.fillStyle = colour("surface");
    ctx.beginPath();
    ctx.roundRect(x - half, top, 2 * half, height, Math.min(half, 3 * ratio, height / 2));
    ctx.fill();
    ctx.fillStyle = colour("accent", 0.26);
    ctx.fill();
    ctx.fillStyle = colour("accent");
    ctx.beginPath();
    ctx.arc(x, y(mean[feature]), Math.min(3 * ratio, half), 0, 2 * Math.PI);
    ctx.fill();
  }
  ctx.restore();
}

/** Whether a linear axis would show some features alone. */
function isWide({ features, mean, std }) {
  if (features < 2) return false;
  const sizes = mean.map((value, feature) => Math.abs(value) + std[feature]);
  return quantile(sizes, 1) > APART * quantile(sizes, 0.5);
}

/** Within this of zero a logarithmic axis is linear. */
function threshold({ std, mean }) {
  const size = quantile(std, 0.5) || quantile(mean.map(Math.abs), 0.5) || 1;
  return 10 ** Math.floor(Math.log10(size));
}

const logarithmic = (near) => ({
  distr: 4,
  asinh: near,
  range: (_, min, max) => [min - 0.15 * Math.abs(min) - 0.1 * near, max + 0.15 * Math.abs(max) + 0.1 * near],
});

/** Marks at zero and at powers of ten on both sides, every second one or fewer where there are many. */
function powers(near) {
  return (plot, axisIndex, min, max) => {
    const decades = Math.ceil(Math.log10(Math.max(Math.abs(min), Math.abs(max)) / near));
    const step = Math.ceil((decades + 1) / 4);
    const sizes = [near];
    for (let decade = step; decade <= decades; decade += step) sizes.push(near * 10 ** decade);
    return [...sizes.map((size) => -size).reverse(), 0, ...sizes].filter((size) => size >= min && size <= max);
  };
}

function summarized({ features, mean, std }) {
  const [means, deviations] = [extremes(mean), extremes(std)];
  if (means.low < 0) return "";
  const of = (values, index) => `${number(values[index])} (feature ${index})`;
  if (features === 1) return "";
  const range = (values, { low, high }) => `from ${of(values, low)} to ${of(values, high)}`;
  return `Means ${range(mean, means)}, deviations ${range(std, deviations)}.`;
}
