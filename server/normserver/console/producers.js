/** Who contributes, how fast, and since when no more. */

import { h, rows, say, show } from "./dom.js";
import { ago, count, moment, NOTHING, rate } from "./format.js";
import { empty, named, pageOf, panel, row, table } from "./panel.js";
import { secondsSince } from "./server-clock.js";

const FEW = 8;
// Who has said nothing for so long may have died.
const SILENT_SECONDS = 60;

export class ProducersPanel {
  /** @param {{normalizers: boolean}} options whether to tell what each contributes to */
  constructor({ normalizers }) {
    this.normalizers = normalizers;
    const { node, aside } = panel("Producers");
    const { node: grid, body } = table(
      "Producers",
      normalizers
        ? [["Producer"], ["Contributes to"], ["Rate", "number"], ["Last", "number"]]
        : [
            ["Producer"],
            ["Rate", "number"],
            ["Merged", "number", "contributions that were merged"],
            ["Last", "number"],
          ],
    );
    this.grid = grid;
    this.body = body;
    this.sum = h("p", { class: "muted" });
    aside.append(this.sum);
    this.nothing = empty("Nobody has contributed since the server was started.");
    this.all = h("button", { type: "button", class: "quiet more", on: { click: () => this.#more() } });
    node.append(grid, this.nothing, this.all);
    this.node = node;
    this.shown = FEW;
    this.producers = [];
  }

  /** Show them. */
  show(contributions) {
    this.contributions = contributions;
    const producers = byProducer(contributions);
    const quiet = producers.filter((one) => one.silent).length;
    rows(
      this.body,
      producers.slice(0, this.shown),
      (one) => one.id,
      (one) => this.#made(one),
      (line, one) => this.#update(line, one),
    );
    say(
      this.sum,
      producers.length ? `${count(producers.length - quiet)} active${quiet ? `, ${count(quiet)} silent` : ""}` : "",
    );
    show(this.grid, producers.length > 0);
    show(this.nothing, producers.length === 0);
    show(this.all, producers.length > FEW);
    say(this.all, this.shown === FEW ? `Show all ${count(producers.length)}` : "Show fewer");
  }

  #more() {
    this.shown = this.shown === FEW ? Infinity : FEW;
    this.show(this.contributions);
  }

  #made({ id }) {
    const line = this.normalizers
      ? row("", "clip", "number", "number muted")
      : row("", "number", "number", "number muted");
    line.cells[0].append(h("code", {}, id));
    const link = h("a");
    const others = h("span", { class: "muted" });
    if (this.normalizers) line.cells[1].append(link, others);
    return { ...line, link, others };
  }

  #update({ node, cells, link, others }, one) {
    node.classList.toggle("silent", one.silent);
    const last = cells.at(-1);
    say(last, ago(secondsSince(one.lastTime)));
    last.title = moment(Date.parse(one.lastTime));
    say(cells[this.normalizers ? 2 : 1], one.silent ? NOTHING : `${rate(one.rate)} /s`);
    if (this.normalizers) {
      const [first, ...more] = one.normalizers;
      if (link.textContent !== first) {
        link.replaceChildren(named(first));
        link.href = pageOf(first);
      }
      say(others, more.length ? ` and ${count(more.length)} more` : "");
      others.title = more.join("\n");
    } else {
      say(cells[2], count(one.merged));
      cells[2].title = `up to its number ${count(one.sequence)}; ${count(one.duplicates)} came again, not counted`;
    }
  }
}

/**
 * One entry a producer, in an order that contributions do not change: the silent last, each by what it contributes to.
 * A contribution to several normalizers at once was one.
 */
function byProducer(contributions) {
  const found = new Map();
  for (const one of contributions) {
    const known = found.get(one.producerId) ?? {
      id: one.producerId,
      normalizers: [],
      rate: 0,
      merged: 0,
      duplicates: 0,
      sequence: 0,
      lastTime: one.lastTime,
    };
    known.normalizers.push(one.normalizer);
    known.rate = Math.max(known.rate, one.contributionsPerSecond);
    known.merged = Math.max(known.merged, Number(one.contributions));
    known.duplicates = Math.max(known.duplicates, Number(one.duplicates));
    known.sequence = Math.max(known.sequence, Number(one.sequence));
    if (Date.parse(one.lastTime) > Date.parse(known.lastTime)) known.lastTime = one.lastTime;
    found.set(one.producerId, known);
  }
  const producers = [...found.values()];
  for (const one of producers) {
    one.normalizers.sort();
    one.silent = secondsSince(one.lastTime) > SILENT_SECONDS;
    one.key = `${one.normalizers[0]} ${one.id}`;
  }
  return producers.sort((a, b) => a.silent - b.silent || (a.key < b.key ? -1 : 1));
}
