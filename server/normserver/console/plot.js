/** A uPlot in an element: as large as that, in the colours of the day, drawn at most once a frame. */

import { colour } from "./colours.js";
import uPlot from "./vendor/uPlot.esm.js";

const FONT = '11px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif';

export class Plot {
  /**
   * @param {HTMLElement} host what it fills; its height is the style sheet's
   * @param {any} options uPlot's, without a size
   * @param {any[]} data uPlot's
   */
  constructor(host, options, data) {
    this.host = host;
    this.zoomed = false;
    this.plot = new uPlot(
      {
        ...options,
        ...this.#size(),
        legend: { show: false },
        hooks: { ...options.hooks, setSelect: [() => this.#zoom()] },
      },
      data,
      host,
    );
    host.addEventListener("dblclick", () => (this.zoomed = false));
    this.observer = new ResizeObserver(() => this.plot.setSize(this.#size()));
    this.observer.observe(host);
    this.repaint = () => this.plot.redraw(false);
    document.addEventListener("themechange", this.repaint);
  }

  /** Draw this at the next frame. What came before and was not drawn yet is not drawn. */
  set(data) {
    const due = this.data !== undefined;
    this.data = data;
    if (!due) this.frame = requestAnimationFrame(() => this.#draw());
  }

  /** Take it away. */
  close() {
    cancelAnimationFrame(this.frame);
    this.observer.disconnect();
    document.removeEventListener("themechange", this.repaint);
    this.plot.destroy();
  }

  #draw() {
    const { data, plot } = this;
    this.data = undefined;
    if (!this.zoomed) {
      plot.setData(data);
      return;
    }
    // Where the person looks stays; heights follow what is there.
    const { min, max } = plot.scales.x;
    plot.batch(() => {
      plot.setData(data, false);
      plot.setScale("x", { min, max });
    });
  }

  #zoom() {
    if (this.plot?.select.width > 0) this.zoomed = true;
  }

  #size() {
    return { width: Math.max(this.host.clientWidth, 40), height: Math.max(this.host.clientHeight, 24) };
  }
}

/** A line, in a colour of the style sheet's. */
export function line(name, { width = 1.5, alpha = 1, fill = 0, ...more } = {}) {
  return {
    stroke: () => colour(name, alpha),
    fill: fill ? () => colour(name, fill) : undefined,
    width,
    cap: "round",
    points: { show: false },
    ...more,
  };
}

/** An axis: faint lines, small figures, no box. */
export function axis(more = {}) {
  return {
    stroke: () => colour("muted"),
    font: FONT,
    gap: 6,
    grid: { stroke: () => colour("line"), width: 1 },
    ticks: { show: false },
    ...more,
  };
}

/** The ends of an axis that begins at zero, never less high than `least`: quiet is to look quiet. */
export const fromZero = (least) => (_, __, max) => [0, Math.max(least, (max ?? 0) * 1.12)];
