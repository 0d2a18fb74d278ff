/** Whether what the page shows is live: the worst of its feeds, said in the bar. */

import { mark, say } from "./dom.js";

const WORST = ["refused", "waiting", "connecting", "paused", "live"];
const SAID = { live: "Live", connecting: "Connecting", paused: "Paused", refused: "Not allowed", waiting: "Not live" };

const healths = new Map();
let soon;

// What takes less is not worth a word.
const PATIENCE = 500;

/** Take note of how a feed is; null when it is gone. */
export function report(feed, health) {
  if (health === null || health.state === "ended") healths.delete(feed);
  else healths.set(feed, health);
  clearTimeout(soon);
  if (now()?.state === "connecting") soon = setTimeout(draw, PATIENCE);
  else draw();
}

const now = () => WORST.map((state) => [...healths.values()].find((health) => health.state === state)).find(Boolean);

function draw() {
  const worst = now();
  const state = worst?.state ?? "connecting";
  const connection = document.getElementById("connection");
  mark(connection, "data-state", state);
  mark(connection, "title", worst?.why || null);
  say(document.getElementById("connection-text"), SAID[state]);
  // While it connects again, what is shown is as old as before.
  if (state !== "connecting")
    document.documentElement.classList.toggle("stale", state === "waiting" || state === "refused");
}
