/** The server's own load over the last minutes: small multiples that share one cursor. */

import { SECONDS } from "./activity.js";
import { h, mark, say } from "./dom.js";
import { bytes, clock, count, counted, NOTHING, rate, span, took } from "./format.js";
import { panel } from "./panel.js";
import { axis, fromZero, line, Plot } from "./plot.js";

/**
 * @typedef {object} Cell
 * @property {string} title
 * @property {string} [unit]
 * @property {boolean} [wide]
 * @property {(load: any) => string} value with its unit behind a space, where that changes
 * @property {(load: any) => string} note
 * @property {(load: any) => boolean} [bad]
 * @property {[string, any][]} lines field and style, what lies below first
 * @property {number} least how high the chart is at least
 */

const AREA = line("accent", { fill: 0.13 });
const BEHIND = line("muted", { width: 1, alpha: 0.7 });

/** @type {Cell[]} */
const CELLS = [
  {
    title: "Contributions",
    unit: "/s",
    wide: true,
    value: (load) => rate(load.contributionsPerSecond),
    note: (load) =>
      load.duplicatesPerSecond > 0
        ? `${rate(load.duplicatesPerSecond)} /s counted before`
        : `from ${counted(Number(load.activeProducers), "producer")}`,
    lines: [["contributionsPerSecond", AREA]],
    least: 4,
  },
  {
    title: "Calls",
    unit: "/s",
    wide: true,
    value: (load) => rate(load.callsPerSecond),
    note: (load) => (load.errorsPerSecond > 0 ? `${rate(load.errorsPerSecond)} /s in error` : traffic(load)),
    bad: (load) => load.errorsPerSecond > 0,
    lines: [
      ["callsPerSecond", AREA],
      ["errorsPerSecond", line("bad", { fill: 0.2 })],
    ],
    least: 4,
  },
  {
    title: "Call",
    value: (load) => took(load.callP50Seconds),
    note: (load) => `p99 ${took(load.callP99Seconds)}`,
    lines: [
      ["callP99Seconds", BEHIND],
      ["callP50Seconds", AREA],
    ],
    least: 0.002,
  },
  {
    title: "Commit",
    value: (load) => took(load.commitP50Seconds),
    note: (load) => `p99 ${took(load.commitP99Seconds)}`,
    lines: [
      ["commitP99Seconds", BEHIND],
      ["commitP50Seconds", AREA],
    ],
    least: 0.002,
  },
  {
    title: "Waiting",
    value: (load) => count(Number(load.pendingContributions) + Number(load.queuedNormalizations)),
    note: (load) => `device p99 ${took(load.queueP99Seconds)}`,
    lines: [["waiting", AREA]],
    least: 4,
  },
  {
    title: "Processor",
    unit: "cores",
    value: (load) => load.cpuCores.toFixed(2),
    note: (load) => `compute ${(100 * load.computeBusyRatio).toFixed(0)} %`,
    lines: [["cpuCores", AREA]],
    least: 1,
  },
  {
    title: "Memory",
    value: (load) => bytes(Number(load.residentBytes)),
    note: () => "resident",
    lines: [["residentBytes", AREA]],
    least: 1,
  },
  {
    title: "Streams",
    value: (load) => count(Number(load.openStreams)),
    note: (load) => `${count(Number(load.watchers))} watch`,
    lines: [["openStreams", AREA]],
    least: 4,
  },
];

function traffic(load) {
  const moved = load.receivedBytesPerSecond + load.sentBytesPerSecond;
  return moved > 0 ? `${bytes(moved)}/s of tensors` : "no errors";
}

export class LoadPanel {
  constructor() {
    this.cells = CELLS.map((cell) => this.#cell(cell));
    const { node } = panel("Load", { className: "load" });
    node.append(
      h(
        "div",
        { class: "multiples" },
        this.cells.map(({ node: cell }) => cell),
      ),
    );
    this.node = node;
    this.load = [];
  }

  /** Show these seconds. Charts are made once they are in the page, which tells how large they are. */
  show(load) {
    this.load = withGaps(load);
    const now = load.at(-1)?.at ?? 0;
    const x = this.load.map((second) => second.at - now);
    for (const cell of this.cells) {
      const data = [x, ...cell.lines.map(([field]) => this.load.map((second) => figure(second, field)))];
      if (cell.plot) cell.plot.set(data);
      else if (cell.chart.isConnected) cell.plot = this.#plot(cell, data);
    }
    this.#say();
  }

  close() {
    for (const { plot } of this.cells) plot?.close();
  }

  /** @param {Cell} cell */
  #cell(cell) {
    const value = h("span", { class: "value" }, NOTHING);
    const unit = h("span", { class: "unit" }, cell.unit ?? "");
    const note = h("span", { class: "note" });
    const when = h("span", { class: "when" });
    const chart = h("div", { class: "spark", "aria-hidden": "true" });
    const node = h(
      "div",
      { class: cell.wide ? "multiple wide" : "multiple" },
      h("h3", {}, cell.title, cell.wide && when),
      h("p", { class: "figure" }, value, unit),
      h("p", { class: "note-line" }, note),
      chart,
    );
    return { ...cell, node, told: { value, unit, note, when }, chart, plot: null };
  }

  #plot(cell, data) {
    const options = {
      padding: cell.wide ? [8, 0, 0, 0] : [4, 0, 1, 0],
      cursor: { y: false, sync: { key: "load" }, drag: { x: false, y: false, setScale: false }, points: { size: 6 } },
      scales: { x: { time: false, range: () => [-SECONDS, 0] }, y: { range: fromZero(cell.least) } },
      series: [{}, ...cell.lines.map(([, style]) => style)],
      axes: cell.wide
        ? [
            axis({
              size: 22,
              space: 60,
              grid: { show: false },
              splits: () => minutes(),
              values: (_, at) => at.map(before),
            }),
            axis({ side: 1, size: 44, space: 34, values: (_, at) => at.map((value) => (value ? rate(value) : "")) }),
          ]
        : [{ show: false }, { show: false }],
      hooks: { setCursor: [(plot) => this.#hover(plot.cursor.idx)] },
    };
    return new Plot(cell.chart, options, data);
  }

  #hover(index) {
    if (this.hovered === index) return;
    this.hovered = index;
    this.#say();
  }

  #say() {
    const last = this.load.at(-1);
    const shown = (this.hovered !== undefined && this.hovered !== null && this.load[this.hovered]) || last;
    if (!shown || shown.gap) return;
    const past = last.at - shown.at;
    for (const cell of this.cells) {
      const { value, unit, note, when } = cell.told;
      const [amount, measure = cell.unit ?? ""] = cell.value(shown).split(" ");
      say(value, amount);
      say(unit, measure);
      say(note, cell.note(shown));
      say(when, past < 1 ? "" : `${clock(shown.at * 1000)}, ${span(past)} ago`);
      mark(note, "data-bad", Boolean(cell.bad?.(shown)));
    }
  }
}

const minutes = () => [-300, -240, -180, -120, -60, 0];
const before = (at) => (at === 0 ? "now" : at === -SECONDS ? "" : `−${-at / 60} min`);

function figure(second, field) {
  if (second.gap) return null;
  if (field === "waiting") return Number(second.pendingContributions) + Number(second.queuedNormalizations);
  // A line of no errors would be red for nothing.
  if (field === "errorsPerSecond" && second[field] === 0) return null;
  return Number(second[field]);
}

/** Where seconds are missing, a line is to break rather than to bridge. */
function withGaps(load) {
  return load.flatMap((second, index) => {
    const missing = index > 0 && second.at - load[index - 1].at > 2.5;
    return missing ? [{ at: load[index - 1].at + 1, gap: true }, second] : [second];
  });
}
