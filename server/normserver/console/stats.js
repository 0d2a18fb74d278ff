/** Running statistics as arrays of numbers. */

/** @typedef {{name: string, version: number, rows: number, batches: number, frozen: boolean, updateTime: string,
 *   ddof: number, seen: boolean, features: number, count: Float64Array, mean: Float64Array, var: Float64Array,
 *   std: Float64Array, min: Float64Array, max: Float64Array}} Stats */

/** Little-endian float64 in base64, as numbers. */
export function float64s(text) {
  if (!text) return new Float64Array(0);
  const characters = atob(text);
  const bytes = new Uint8Array(characters.length);
  for (let index = 0; index < bytes.length; index += 1) bytes[index] = characters.charCodeAt(index);
  return new Float64Array(bytes.buffer);
}

/** @returns {Stats} */
export function decoded(message) {
  const count = float64s(message.count);
  const variance = float64s(message.var);
  return {
    name: message.normalizer,
    version: Number(message.version),
    rows: largest(count),
    batches: Number(message.numBatches),
    frozen: Boolean(message.frozen),
    updateTime: message.updateTime,
    ddof: message.ddof ?? 0,
    seen: variance.length > 0,
    features: variance.length,
    count,
    mean: float64s(message.mean),
    var: variance,
    std: variance.map(Math.sqrt),
    min: float64s(message.min),
    max: float64s(message.max),
  };
}

const largest = (values) => values.reduce((most, value) => Math.max(most, value), 0);

/** Where an array is smallest and largest. What is no number is passed over. */
export function extremes(values) {
  let [low, high] = [-1, -1];
  for (let index = 0; index < values.length; index += 1) {
    if (!Number.isFinite(values[index])) continue;
    if (low < 0 || values[index] < values[low]) low = index;
    if (high < 0 || values[index] > values[high]) high = index;
  }
  return { low, high };
}

/** The value that so large a part lies below. */
export function quantile(values, part) {
  const sorted = Float64Array.from(values).filter(Number.isFinite).sort();
  return sorted.length ? sorted[Math.min(sorted.length - 1, Math.floor(part * sorted.length))] : NaN;
}
