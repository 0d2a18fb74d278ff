/** The first page: whether all is well, what the server is doing, and who waits for whom. */

import { activity } from "./activity.js";
import { ActiveNormalizers, isActive } from "./active-normalizers.js";
import { h, mark, say } from "./dom.js";
import { ago, counted, span } from "./format.js";
import { LoadPanel } from "./load.js";
import { ProducersPanel } from "./producers.js";
import { RoundsPanel } from "./rounds.js";
import { secondsSince } from "./server-clock.js";

export function openOverview(main) {
  const state = h("h1", { tabindex: "-1" }, "Connecting");
  const dot = h("span", { class: "dot", "aria-hidden": "true" });
  const summary = h("p", { class: "summary" });
  const about = h("p", { class: "about muted" });
  const load = new LoadPanel();
  const normalizers = new ActiveNormalizers();
  const rounds = new RoundsPanel();
  const producers = new ProducersPanel({ normalizers: true });
  main.append(
    h("div", { class: "lead" }, h("div", {}, h("div", { class: "state" }, dot, state), summary), about),
    load.node,
    h(
      "div",
      { class: "columns" },
      h("div", { class: "column" }, normalizers.node),
      h("div", { class: "column side" }, rounds.node, producers.node),
    ),
  );

  const unsubscribe = activity.subscribe(({ latest, load: seconds, received }) => {
    const { server = {}, normalizers: active = [], producers: who = [], rounds: open = [] } = latest;
    const well = !server.notReady;
    say(state, well ? "Ready" : "Not ready");
    mark(dot, "data-state", well ? "good" : "bad");
    say(summary, well ? summarized(active, open, seconds.at(-1)) : server.notReady);
    say(about, described(server));
    about.title = `last commit ${ago(secondsSince(server.lastCommitTime))}`;
    load.show(seconds);
    normalizers.show(active);
    rounds.show(open, received);
    producers.show(who);
  });

  return () => {
    unsubscribe();
    load.close();
    rounds.close();
  };
}

function summarized(normalizers, rounds, load) {
  const changing = normalizers.filter(isActive).length;
  const producing = Number(load?.activeProducers ?? 0);
  const waiting = rounds.filter((round) => round.waitedSeconds >= 0.5).length;
  const said = changing
    ? [`${counted(changing, "normalizer changes", "normalizers change")}, fed by ${counted(producing, "producer")}.`]
    : ["All quiet: nothing has changed for half a minute."];
  if (waiting) said.push(`${counted(waiting, "round waits", "rounds wait")} for members.`);
  return said.join(" ");
}

function described(server) {
  const up = server.startTime ? `up ${span(secondsSince(server.startTime)).replace(/ \d+ s$/, "")}` : "";
  return [`normstats ${server.release ?? ""}`, server.store, server.device, up]
    .filter((part) => part && part.trim())
    .join(" · ");
}
