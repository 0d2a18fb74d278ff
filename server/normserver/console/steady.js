/**
 * An order by a figure that trembles: the largest first, but two change places only when one has clearly overtaken the
 * other, so that a table that is drawn every second keeps still.
 */

const CLEARLY = 1.4;

/**
 * @template Item
 * @param {(item: Item) => string} keyOf
 * @param {(item: Item) => number} figureOf
 * @returns {(items: Item[]) => Item[]}
 */
export function steady(keyOf, figureOf) {
  let held = new Map();
  return (items) => {
    const next = new Map();
    for (const item of items) {
      const figure = figureOf(item);
      const before = held.get(keyOf(item));
      const same = before !== undefined && figure < before * CLEARLY && figure > before / CLEARLY;
      next.set(keyOf(item), same ? before : figure);
    }
    held = next;
    return items.slice().sort((a, b) => held.get(keyOf(b)) - held.get(keyOf(a)) || (keyOf(a) < keyOf(b) ? -1 : 1));
  };
}
