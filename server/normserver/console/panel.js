/** The boxes and tables that pages are made of. */

import { h } from "./dom.js";

let ids = 0;

/**
 * A titled part of a page.
 *
 * @param {string} title
 * @param {object} [options]
 * @param {string} [options.className]
 * @param {any[]} [options.aside] what stands at the title's end
 */
export function panel(title, { className = "", aside = [] } = {}) {
  const id = `panel-${(ids += 1)}`;
  const heading = h("h2", { id }, title);
  const end = h("div", { class: "panel-aside" }, aside);
  const node = h(
    "section",
    { class: `panel ${className}`, "aria-labelledby": id },
    h("div", { class: "panel-head" }, heading, end),
  );
  return { node, heading, aside: end };
}

/**
 * A table.
 *
 * @param {string} label for who cannot see what stands around it
 * @param {[string, string?, string?][]} columns title, class, and what it means
 */
export function table(label, columns) {
  const body = h("tbody");
  const head = columns.map(([title, kind, meaning]) => h("th", { scope: "col", class: kind, title: meaning }, title));
  const node = h("table", { "aria-label": label }, h("thead", {}, h("tr", {}, head)), body);
  return { node, body };
}

/** A row whose cells have these classes, without those that are false; its cells by their places. */
export function row(...kinds) {
  const cells = kinds.filter((kind) => kind !== false).map((kind) => h("td", { class: kind || null }));
  return { node: h("tr", {}, cells), cells };
}

/** What stands where there is nothing. */
export const empty = (...said) => h("p", { class: "empty" }, said);

/** Where a normalizer's page is. */
export const pageOf = (name) => `#/n/${name.split("/").map(encodeURIComponent).join("/")}`;

/** A name: where it is, and, stronger, what it is called there. */
export function named(name) {
  const cut = name.lastIndexOf("/") + 1;
  return h(
    "span",
    { class: "name" },
    cut > 0 && h("span", { class: "path" }, name.slice(0, cut)),
    h("span", {}, name.slice(cut)),
  );
}
