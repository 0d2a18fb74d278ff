/** Features that are pixels, drawn as what they are: the mean picture, and how far each pixel strays. */

import { RAMP } from "./colours.js";
import { h, rows, say, show } from "./dom.js";
import { count, number } from "./format.js";
import { panel } from "./panel.js";
import { extremes } from "./stats.js";

const SMALLEST = 8;
const COLOUR = -1;

/** The shape that a number of features suggests; null if none. */
export function shapeOf(features) {
  for (const channels of [1, 3]) {
    const side = Math.sqrt(features / channels);
    if (Number.isInteger(side) && side >= SMALLEST) return { width: side, height: side, channels };
  }
  return null;
}

export class PicturePanel {
  constructor() {
    const { node, aside } = panel("As a picture", { className: "picture" });
    this.width = h("input", { type: "number", min: 1, inputmode: "numeric", "aria-label": "width in pixels" });
    this.width.addEventListener("change", () => this.#resize());
    aside.append(h("label", { class: "muted" }, "width ", this.width));
    this.images = [new Image("Mean"), new Image("Deviation")];
    this.readout = h("p", { class: "caption" });
    node.append(
      h(
        "div",
        { class: "images" },
        this.images.map((image) => image.node),
      ),
      this.readout,
    );
    for (const image of this.images) image.read = (text) => say(this.readout, text || this.caption);
    this.node = node;
  }

  /** Show statistics. */
  show(stats) {
    const first = !this.stats;
    this.stats = stats;
    if (first) this.#shape(shapeOf(stats.features));
    show(this.node, Boolean(this.shape));
    this.#draw();
  }

  /** Show it although nothing suggests a picture, and let the person say how wide. */
  ask() {
    this.#shape(this.shape ?? { width: Math.ceil(Math.sqrt(this.stats.features)), channels: 1 });
    this.show(this.stats);
    this.width.focus();
  }

  close() {}

  #resize() {
    const width = Math.round(Number(this.width.value));
    if (!(width >= 1 && width <= this.stats.features)) return;
    const natural = shapeOf(this.stats.features);
    this.#shape(natural?.width === width ? natural : { width, channels: 1 });
    this.#draw();
  }

  #shape(shape) {
    this.shape = shape;
    if (!shape) return;
    const pixels = this.stats.features / shape.channels;
    shape.height = Math.ceil(pixels / shape.width);
    this.width.value = shape.width;
    const size = `${count(shape.width)} × ${count(shape.height)} pixels`;
    this.caption =
      shape.channels === 1
        ? `${size}, row by row.`
        : `${shape.channels} channels of ${size}, one after the other; together as red, green and blue.`;
    say(this.readout, this.caption);
  }

  #draw() {
    if (!this.shape) return;
    this.images[0].draw(this.stats.mean, this.shape);
    this.images[1].draw(this.stats.std, this.shape);
  }
}

/** One statistic: a canvas for each channel, on one scale, and the channels together if they are three. */
class Image {
  constructor(title) {
    this.title = title;
    this.canvases = h("div", { class: "channels" });
    this.scale = h("canvas", { class: "scale", width: 256, height: 1 });
    this.low = h("span");
    this.high = h("span");
    const line = h("div", { class: "scale-line", "aria-hidden": "true" }, this.low, this.scale, this.high);
    this.node = h("figure", {}, h("figcaption", {}, title), this.canvases, line);
    this.read = () => {};
    paint(this.scale, (step) => 3 * step, RAMP, 256);
  }

  draw(values, { width, height, channels }) {
    const { low, high } = extremes(values);
    const [from, to] = [values[low] ?? 0, values[high] ?? 0];
    const pixels = values.length / channels;
    const factor = to > from ? 255 / (to - from) : 0;
    const level = (index) => Math.max(0, Math.min(255, Math.round((values[index] - from) * factor))) || 0;
    const planes = Array.from({ length: channels }, (_, channel) => channel);
    if (channels === 3) planes.unshift(COLOUR);
    rows(
      this.canvases,
      planes,
      (plane) => plane,
      (plane) => this.#canvas(plane),
      ({ node }, plane) => {
        node.width = width;
        node.height = height;
        node.setAttribute(
          "aria-label",
          `${this.title}${described(plane, channels)}, from ${number(from)} to ${number(to)}`,
        );
        if (plane === COLOUR) paintColours(node, level, pixels);
        else paint(node, (pixel) => 3 * level(plane * pixels + pixel), RAMP, pixels);
      },
    );
    Object.assign(this, { values, width, pixels });
    say(this.low, number(from, 3));
    say(this.high, number(to, 3));
  }

  #canvas(plane) {
    const node = h("canvas", { role: "img" });
    node.addEventListener("mousemove", (event) => this.#point(node, plane, event));
    node.addEventListener("mouseleave", () => this.read(""));
    return { node };
  }

  #point(canvas, plane, event) {
    const box = canvas.getBoundingClientRect();
    const column = Math.min(this.width - 1, Math.floor(((event.clientX - box.left) / box.width) * this.width));
    const line = Math.floor(((event.clientY - box.top) / box.height) * canvas.height);
    const pixel = line * this.width + column;
    if (!(pixel >= 0 && pixel < this.pixels)) return;
    const place = `row ${line}, column ${column}`;
    const values = (plane === COLOUR ? [0, 1, 2] : [plane]).map((channel) =>
      number(this.values[channel * this.pixels + pixel]),
    );
    const feature = plane === COLOUR ? "" : ` (feature ${plane * this.pixels + pixel})`;
    this.read(`${this.title} at ${place}${feature}: ${values.join(", ")}`);
  }
}

function described(plane, channels) {
  if (channels === 1) return "";
  return plane === COLOUR ? " of all channels, in colour" : ` of channel ${plane + 1}`;
}

function paint(canvas, offsetOf, colours, pixels) {
  const context = canvas.getContext("2d");
  const image = context.createImageData(canvas.width, canvas.height);
  for (let pixel = 0; pixel < pixels; pixel += 1) {
    const offset = offsetOf(pixel);
    for (let channel = 0; channel < 3; channel += 1) image.data[4 * pixel + channel] = colours[offset + channel];
    image.data[4 * pixel + 3] = 255;
  }
  context.putImageData(image, 0, 0);
}

function paintColours(canvas, level, pixels) {
  const context = canvas.getContext("2d");
  const image = context.createImageData(canvas.width, canvas.height);
  for (let pixel = 0; pixel < pixels; pixel += 1) {
    for (let channel = 0; channel < 3; channel += 1) image.data[4 * pixel + channel] = level(channel * pixels + pixel);
    image.data[4 * pixel + 3] = 255;
  }
  context.putImageData(image, 0, 0);
}
