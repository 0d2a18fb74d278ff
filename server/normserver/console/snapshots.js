/** A normalizer's snapshots, and what can be done with them. */

import { change, read } from "./api.js";
import { ask, tell } from "./dialog.js";
import { h, rows, say, show } from "./dom.js";
import { ago, count, counted, moment } from "./format.js";
import { empty, panel, row, table } from "./panel.js";
import { secondsSince } from "./server-clock.js";
import { token } from "./token.js";

const FEW = 8;

export class SnapshotsPanel {
  /**
   * @param {string} name
   * @param {(snapshots: any[]) => void} told whenever they are read
   * @param {(tag: string) => void} compare
   */
  constructor(name, told, compare) {
    this.name = name;
    this.told = told;
    this.compare = compare;
    const { node, aside } = panel("Snapshots");
    this.taking = h("button", { type: "button", class: "quiet", on: { click: () => this.take() } }, "Take one");
    aside.append(this.taking);
    const { node: grid, body } = table("Snapshots", [
      ["Tag"],
      ["Version", "number"],
      ["Rows", "number"],
      ["Taken", "number"],
      ["", "actions"],
    ]);
    this.body = body;
    this.grid = grid;
    this.nothing = empty("None yet. A snapshot keeps the statistics as they are, to restore them or to tell drift.");
    this.all = h("button", { type: "button", class: "quiet more", on: { click: () => this.#more() } });
    node.append(grid, this.nothing, this.all);
    this.node = node;
    this.snapshots = [];
    this.shown = FEW;
    this.onToken = () => this.#draw();
    document.addEventListener("tokenchange", this.onToken);
    this.#draw();
    show(this.nothing, false);
  }

  /** Read them again. */
  async refresh() {
    try {
      const { snapshots = [] } = await read("ListSnapshots", { normalizer: this.name });
      this.snapshots = snapshots.sort((a, b) => Date.parse(b.createTime) - Date.parse(a.createTime));
      this.#draw();
      this.told(this.snapshots);
    } catch (error) {
      say(this.nothing, error.message);
    }
  }

  /** What the present statistics are, for what the dialogs say. */
  show(stats) {
    this.stats = stats;
  }

  close() {
    document.removeEventListener("tokenchange", this.onToken);
  }

  #more() {
    this.shown = this.shown === FEW ? Infinity : FEW;
    this.#draw();
  }

  #draw() {
    rows(
      this.body,
      this.snapshots.slice(0, this.shown),
      (one) => one.tag,
      (one) => this.#made(one),
      (line, one) => this.#update(line, one),
    );
    show(this.taking, Boolean(token()));
    this.grid.classList.toggle("reading", !token());
    show(this.grid, this.snapshots.length > 0);
    show(this.nothing, this.snapshots.length === 0);
    show(this.all, this.snapshots.length > FEW);
    say(this.all, this.shown === FEW ? `Show all ${count(this.snapshots.length)}` : "Show fewer");
  }

  #made({ tag }) {
    const line = row("clip", "number", "number", "number muted", "actions");
    line.cells[0].append(
      h(
        "button",
        { type: "button", class: "link", title: `Compare with ${tag}`, on: { click: () => this.compare(tag) } },
        tag,
      ),
    );
    const restore = h(
      "button",
      { type: "button", class: "quiet small", on: { click: () => this.#restore(tag) } },
      "Restore",
    );
    const drop = h(
      "button",
      {
        type: "button",
        class: "quiet small",
        "aria-label": `Delete ${tag}`,
        title: "Delete",
        on: { click: () => this.#delete(tag) },
      },
      "×",
    );
    line.cells[4].append(restore, drop);
    return line;
  }

  #update({ cells }, one) {
    say(cells[1], count(Number(one.version)));
    say(cells[2], count(one.count));
    say(cells[3], ago(secondsSince(one.createTime)));
    cells[3].title = moment(Date.parse(one.createTime));
  }

  /** Ask for a tag, and keep what is. */
  take() {
    const input = h("input", {
      id: "tag",
      required: true,
      maxlength: 100,
      pattern: "[A-Za-z0-9_][A-Za-z0-9._\\-]*",
      value: suggested(),
      autocomplete: "off",
      spellcheck: "false",
    });
    return ask({
      title: `Take a snapshot of ${this.name}`,
      body: [
        h("p", {}, `Keeps the statistics as they are now${this.#present()}. Contributions go on.`),
        h("label", { for: "tag" }, "Tag"),
        input,
      ],
      note: "Letters, digits, '.', '_' and '-'.",
      yes: "Take it",
      act: () => this.#did("CreateSnapshot", { tag: input.value }, `Snapshot ${input.value} is kept.`),
    });
  }

  #restore(tag) {
    const one = this.#of(tag);
    const time = moment(Date.parse(one.createTime));
    const batches = counted(Number(one.numBatches), "batch", "batches");
    return ask({
      title: `Restore ${this.name} to ${tag}?`,
      body: [
        h("p", {}, `Its statistics become those of ${time}: ${counted(one.count, "row")}, ${batches}.`),
        h(
          "p",
          {},
          `What was contributed since then${this.#since(one)} no longer counts, and whoever normalizes by this name ` +
            "gets the restored statistics at once. Take a snapshot first to be able to return.",
        ),
      ],
      yes: "Restore",
      act: () => this.#did("RestoreSnapshot", { tag }, `${this.name} is as it was at ${tag}.`),
    });
  }

  #delete(tag) {
    return ask({
      title: `Delete snapshot ${tag}?`,
      body: [
        h("p", {}, `Nothing can be restored from it or compared with it any more. ${this.name} itself stays as it is.`),
      ],
      yes: "Delete",
      act: () => this.#did("DeleteSnapshot", { tag }, `Snapshot ${tag} is deleted.`),
    });
  }

  async #did(method, message, done) {
    await change(method, { normalizer: this.name, ...message });
    tell(done);
    await this.refresh();
  }

  #of(tag) {
    return this.snapshots.find((one) => one.tag === tag);
  }

  #present() {
    if (!this.stats?.seen) return "";
    return `, version ${count(this.stats.version)} of ${counted(this.stats.rows, "row")}`;
  }

  #since(one) {
    const gained = (this.stats?.rows ?? 0) - one.count;
    return gained > 0 ? ` (${counted(gained, "row")})` : "";
  }
}

/** A tag that sorts by its time. */
function suggested() {
  const now = new Date();
  const two = (value) => String(value).padStart(2, "0");
  const day = [now.getFullYear(), now.getMonth() + 1, now.getDate()].map(two).join("-");
  return `${day}-${two(now.getHours())}${two(now.getMinutes())}`;
}
