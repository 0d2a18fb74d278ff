/**
 * Elements. Text enters the page as text nodes alone, so that no name, tag or error can be markup.
 */

/** @typedef {Node | string | number | null | undefined | false} Child */

const SVG = "http://www.w3.org/2000/svg";

/**
 * An element.
 *
 * @param {string} tag
 * @param {Record<string, any>} [attributes] null and false are left out; `on` holds listeners by their events
 * @param {...(Child | Child[])} children
 * @returns {any}
 */
export function h(tag, attributes = {}, ...children) {
  return dressed(document.createElement(tag), attributes, children);
}

/** The same for drawings. */
export function svg(tag, attributes = {}, ...children) {
  return dressed(document.createElementNS(SVG, tag), attributes, children);
}

function dressed(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "on") {
      for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    } else if (value !== null && value !== undefined && value !== false) {
      element.setAttribute(name, value === true ? "" : String(value));
    }
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** Say something else, if it is: what is the same is left alone, and selections and screen readers with it. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Set an attribute, or take it away (null, false), if that changes anything. */
export function mark(element, name, value) {
  const text = value === true ? "" : value === null || value === false ? null : String(value);
  if (element.getAttribute(name) === text) return;
  if (text === null) element.removeAttribute(name);
  else element.setAttribute(name, text);
}

/** Show or hide. */
export function show(element, shown) {
  if (element.hidden === shown) element.hidden = !shown;
}

const rowsOf = new WeakMap();

/**
 * One row for each item, in their order. Rows stay what they are while their keys do, so that nothing flickers, loses
 * the focus or is read out again.
 *
 * @template Item
 * @template {{node: Element}} Row
 * @param {Element} parent
 * @param {Iterable<Item>} items
 * @param {(item: Item) => string | number} keyOf
 * @param {(item: Item) => Row} make
 * @param {(row: Row, item: Item, index: number) => void} update
 */
export function rows(parent, items, keyOf, make, update) {
  const before = rowsOf.get(parent) ?? new Map();
  const after = new Map();
  let place = parent.firstElementChild;
  let index = 0;
  for (const item of items) {
    const key = keyOf(item);
    const row = before.get(key) ?? make(item);
    before.delete(key);
    after.set(key, row);
    update(row, item, index);
    index += 1;
    if (row.node === place) place = place.nextElementSibling;
    else parent.insertBefore(row.node, place);
  }
  for (const row of before.values()) row.node.remove();
  rowsOf.set(parent, after);
}
