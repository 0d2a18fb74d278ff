/** The console: which page is open, and the keys that work everywhere. */

import { accessBy } from "./access.js";
import { activity } from "./activity.js";
import { mark } from "./dom.js";
import { openNormalizer } from "./normalizer.js";
import { lastSearch, openNormalizers } from "./normalizers.js";
import { openOverview } from "./overview.js";
import { switchBy } from "./theme.js";

const main = document.getElementById("main");
let close = () => {};
let page = "";
let focusSearch = false;

/** What the address says: a page, and what it is about. */
function routed(hash) {
  const [path, query = ""] = hash.replace(/^#\/?/, "").split("?");
  if (path.startsWith("n/")) return { page: "normalizer", name: path.slice(2).split("/").map(plain).join("/") };
  if (path === "normalizers") return { page: "normalizers", query: new URLSearchParams(query).get("q") ?? "" };
  return { page: "overview" };
}

function plain(segment) {
  try {
    return decodeURIComponent(segment);
  } catch {
    return segment;
  }
}

function route() {
  const { page: next, name, query } = routed(location.hash);
  close();
  main.replaceChildren();
  const began = page !== "";
  page = next;
  mark(document.getElementById("to-overview"), "aria-current", next === "overview" ? "page" : null);
  mark(document.getElementById("to-normalizers"), "aria-current", next === "overview" ? null : "page");
  document.title = next === "overview" ? "normstats" : `${name ?? "Normalizers"} · normstats`;
  scrollTo(0, 0);
  if (next === "overview") close = openOverview(main);
  else if (next === "normalizers") close = openNormalizers(main, { query, focus: focusSearch });
  else close = openNormalizer(main, name);
  focusSearch = false;
  // Who follows a link by keyboard or by ear is to be where it leads.
  if (began && !main.contains(document.activeElement)) main.querySelector("h1")?.focus({ preventScroll: true });
}

function find() {
  if (page === "normalizers") {
    document.getElementById("search").focus();
    document.getElementById("search").select();
  } else {
    focusSearch = true;
    location.hash = "#/normalizers";
  }
}

function key(event) {
  if (
    event.defaultPrevented ||
    event.ctrlKey ||
    event.metaKey ||
    event.altKey ||
    document.querySelector("dialog[open]")
  )
    return;
  const typing = event.target.closest?.("input, select, textarea");
  if (event.key === "/" && !typing) {
    event.preventDefault();
    find();
  } else if (event.key === "Escape" && page === "normalizer") {
    location.hash = lastSearch();
  } else if (event.key === "Escape" && page === "normalizers") {
    location.hash = "#/";
  }
}

document.getElementById("find").addEventListener("click", (event) => {
  event.preventDefault();
  find();
});
document.getElementById("skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});
addEventListener("hashchange", route);
addEventListener("keydown", key);
document.addEventListener("tokenchange", () => {
  activity.open();
  route();
});
switchBy(document.getElementById("theme"));
accessBy(document.getElementById("access"));
activity.open();
route();
