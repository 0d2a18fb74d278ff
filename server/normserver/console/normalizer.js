/** One normalizer: what it is, what it has seen, and how that came to be. */

import { activity } from "./activity.js";
import { change, read } from "./api.js";
import { report } from "./connection.js";
import { ask, tell } from "./dialog.js";
import { h, mark, say, show } from "./dom.js";
import { DriftPanel } from "./drift.js";
import { FeaturesPanel } from "./features.js";
import { Feed } from "./feed.js";
import { ago, count, moment, rate } from "./format.js";
import { HistoryPanel } from "./history.js";
import { lastSearch } from "./normalizers.js";
import { named, panel } from "./panel.js";
import { PicturePanel } from "./picture.js";
import { ProducersPanel } from "./producers.js";
import { secondsSince } from "./server-clock.js";
import { SinglePanel } from "./single.js";
import { SnapshotsPanel } from "./snapshots.js";
import { detailsOf, keepsStatistics, kindOf, sizeOf } from "./spec.js";
import { decoded } from "./stats.js";
import { token } from "./token.js";
import { ValuesPanel } from "./values.js";
import { VariancesPanel } from "./variances.js";

// A server that does not answer is asked again after so long.
const AGAIN = 2_000;
// Of so many features one may want to see a picture although nothing suggests a shape.
const PICTURED = 32;

/** Open the page. Returns how to close it. */
export function openNormalizer(main, name) {
  const page = new NormalizerPage(name);
  main.append(page.node);
  page.open();
  return () => page.close();
}

class NormalizerPage {
  constructor(name) {
    this.name = name;
    this.title = h("h1", { tabindex: "-1" }, named(name));
    this.frozen = h("span", { class: "badge", hidden: true }, "frozen");
    this.details = h("p", { class: "details" });
    this.freeze = h("button", { type: "button", class: "button", on: { click: () => this.#freeze() } }, "Freeze");
    this.snapshot = h(
      "button",
      { type: "button", class: "button primary", on: { click: () => this.snapshots.take() } },
      "Take a snapshot",
    );
    this.actions = h("div", { class: "actions", hidden: true }, this.freeze, this.snapshot);
    this.figures = Object.fromEntries(
      ["Rows", "Batches", "Version", "Contributions", "Changed"].map((title) => [title, h("dd", {}, "–")]),
    );
    this.strip = h(
      "dl",
      { class: "figures", hidden: true },
      Object.entries(this.figures).map(([title, figure]) => h("div", {}, h("dt", {}, title), figure)),
    );
    this.body = h("div", { class: "columns wide-main" });
    this.node = h(
      "article",
      {},
      h("p", { class: "crumb" }, h("a", { href: lastSearch() }, "← Normalizers")),
      h(
        "div",
        { class: "lead" },
        h("div", {}, h("div", { class: "state" }, this.title, this.frozen), this.details),
        this.actions,
      ),
      this.strip,
      this.body,
    );
    this.snapshots = new SnapshotsPanel(
      name,
      (all) => this.drift?.offer(all),
      (tag) => this.drift?.choose(tag),
    );
    this.panels = [];
    this.closers = [];
  }

  async open() {
    try {
      const { normalizer } = await read("GetNormalizer", { name: this.name });
      if (!this.closed) this.#present(normalizer);
    } catch (error) {
      if (this.closed) return;
      this.#absent(error);
      if (!(error.status < 500)) this.trying = setTimeout(() => this.open(), AGAIN);
    }
  }

  close() {
    this.closed = true;
    clearTimeout(this.trying);
    this.feed?.close();
    report("statistics", null);
    clearInterval(this.timer);
    this.snapshots.close();
    for (const close of [...this.closers, ...this.panels.map((one) => () => one.close?.())]) close();
  }

  #present(normalizer) {
    say(this.details, [kindOf(normalizer.spec), sizeOf(normalizer.spec), ...detailsOf(normalizer.spec)].join(" · "));
    this.#figure(figuresOf(normalizer));
    if (!keepsStatistics(normalizer.spec)) {
      this.#notice(
        "It keeps no statistics",
        "Each sample is normalized by its own, so there is nothing to watch, to snapshot or to freeze.",
      );
      return;
    }
    show(this.strip, true);
    const allow = () => show(this.actions, Boolean(token()));
    this.#listen("tokenchange", allow);
    allow();
    this.closers.push(activity.subscribe(({ latest }) => this.#rate(latest.normalizers ?? [])));
    this.timer = setInterval(() => this.#changed(), 1_000);
    this.#watch();
  }

  #listen(event, listener) {
    document.addEventListener(event, listener);
    this.closers.push(() => document.removeEventListener(event, listener));
  }

  #watch() {
    this.feed?.close();
    this.feed = new Feed(
      "WatchRunningStats",
      { normalizer: this.name },
      {
        newest: true,
        take: ({ stats }) => this.#take(decoded(stats)),
        tell: (health, error) => {
          report("statistics", health);
          if (error?.code === "NOT_FOUND") this.#absent(error);
        },
      },
    );
  }

  /** @param {import("./stats.js").Stats} stats */
  #take(stats) {
    this.stats = stats;
    this.#figure(stats);
    this.snapshots.show(stats);
    if (!stats.seen) {
      this.#unseen();
      return;
    }
    if (this.features !== stats.features) this.#build(stats);
    for (const one of this.panels) one.show?.(stats);
    this.history.refresh(stats.version);
    this.drift.refresh(stats.version);
  }

  #build(stats) {
    this.#clear();
    this.features = stats.features;
    const single = stats.features === 1;
    const values = new ValuesPanel();
    const main = single ? new SinglePanel() : new FeaturesPanel((feature) => values.reveal(feature));
    const picture = new PicturePanel();
    const variances = new VariancesPanel();
    const producers = new ProducersPanel({ normalizers: false });
    const history = new HistoryPanel(this.name, stats.features, (who) => producers.show(who));
    const drift = new DriftPanel(this.name);
    this.body.append(
      h("div", { class: "column" }, main.node, history.node, drift.node),
      h("div", { class: "column side" }, picture.node, variances.node, this.snapshots.node, producers.node),
      values.node,
    );
    Object.assign(this, { history, drift });
    this.panels = [main, picture, variances, values];
    this.closers.push(
      () => history.close(),
      () => drift.close(),
    );
    this.snapshots.refresh();
    producers.show([]);
    if (stats.features >= PICTURED) this.#offerPicture(main, picture);
  }

  #offerPicture(main, picture) {
    const offer = h("button", { type: "button", class: "key toggle" }, "as a picture");
    offer.addEventListener("click", () => {
      picture.ask();
      picture.node.scrollIntoView({ block: "nearest" });
      offer.remove();
    });
    queueMicrotask(() => {
      if (picture.node.hidden) main.legend?.append(offer);
    });
  }

  #clear() {
    for (const one of this.panels) one.close?.();
    this.panels = [];
    this.body.replaceChildren();
    this.features = undefined;
  }

  #unseen() {
    if (this.features === 0) return;
    this.#clear();
    this.features = 0;
    const call = h("pre", {}, h("code", {}, `client.get("${this.name}").update(batch)`));
    this.#notice(
      "It has seen nothing yet",
      "Statistics appear here with the first contribution to every feature:",
      call,
    );
  }

  #absent(error) {
    this.#clear();
    show(this.strip, false);
    show(this.actions, false);
    const gone = error.code === "NOT_FOUND";
    this.#notice(gone ? "There is no such normalizer" : "It cannot be shown", error.message);
  }

  #notice(title, text, ...more) {
    const { node } = panel(title, { className: "notice" });
    node.append(h("p", {}, text), ...more);
    this.body.replaceChildren(node);
  }

  #figure({ rows, batches, version, frozen, updateTime }) {
    say(this.figures.Rows, count(rows));
    say(this.figures.Batches, count(batches));
    say(this.figures.Version, count(version));
    this.updateTime = updateTime;
    this.isFrozen = frozen;
    show(this.frozen, frozen);
    say(this.freeze, frozen ? "Thaw" : "Freeze");
    this.#changed();
  }

  #changed() {
    say(this.figures.Changed, ago(secondsSince(this.updateTime)));
    this.figures.Changed.title = moment(Date.parse(this.updateTime));
  }

  #rate(normalizers) {
    const one = normalizers.find(({ name }) => name === this.name);
    say(this.figures.Contributions, `${rate(one?.contributionsPerSecond ?? 0)} /s`);
    mark(this.figures.Contributions, "title", "a second, over half a minute or so");
  }

  #freeze() {
    const { name, isFrozen } = this;
    const now = this.stats?.seen ? `version ${count(this.stats.version)}` : "what there is";
    return ask({
      title: isFrozen ? `Thaw ${name}?` : `Freeze ${name}?`,
      body: [
        h(
          "p",
          {},
          isFrozen
            ? "Contributions are merged again from now on."
            : `From now on contributions are refused. Whoever normalizes by this name goes on with ${now}.`,
        ),
      ],
      note: isFrozen ? "" : "Thawing undoes it; what was refused meanwhile is not made up for.",
      yes: isFrozen ? "Thaw" : "Freeze",
      act: async () => {
        const { normalizer } = await change("UpdateNormalizer", { name, frozen: !isFrozen });
        this.#figure(figuresOf(normalizer));
        tell(isFrozen ? `${name} is thawed.` : `${name} is frozen.`);
      },
    });
  }
}

const figuresOf = ({ count: rows, numBatches, version, frozen, updateTime }) => ({
  rows,
  batches: Number(numBatches),
  version: Number(version),
  frozen: Boolean(frozen),
  updateTime,
});
