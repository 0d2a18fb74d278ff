/** What a normalizer does, in words. */

import { count, counted, number, span } from "./format.js";

const KINDS = {
  batchNorm: "Batch norm",
  layerNorm: "Layer norm",
  rmsNorm: "RMS norm",
  groupNorm: "Group norm",
  instanceNorm: "Instance norm",
  adaptiveInstanceNorm: "Adaptive instance norm",
  meanVarianceNorm: "Mean-variance norm",
  lpNorm: "Lp norm",
  localResponseNorm: "Local response norm",
  standardize: "Standardize",
  minMax: "Min-max",
};
const KEEPING = new Set(["batchNorm", "standardize", "minMax"]);
// Unless the spec says otherwise.
const CHANNEL_AXIS = { batchNorm: 1, standardize: -1, minMax: -1 };

const parts = (spec) => Object.entries(spec ?? {}).find(([kind]) => kind in KINDS) ?? ["", {}];

/** What kind it is. */
export const kindOf = (spec) => KINDS[parts(spec)[0]] ?? "Normalizer";

/** Whether it remembers what it has seen. */
export const keepsStatistics = (spec) => KEEPING.has(parts(spec)[0]);

/** How many features it has, or how its samples end, in words. */
export function sizeOf(spec) {
  const [, body] = parts(spec);
  if (body.numFeatures !== undefined) return counted(Number(body.numFeatures), "feature");
  if (body.normalizedShape !== undefined) return body.normalizedShape.map((size) => count(Number(size))).join(" × ");
  if (body.numChannels !== undefined)
    return `${counted(Number(body.numChannels), "channel")} in ${counted(Number(body.numGroups), "group")}`;
  return "any size";
}

/** What else there is to know, a few words each. */
export function detailsOf(spec) {
  const [kind, body] = parts(spec);
  return [...purpose(kind, body), ...policy(kind, body.runningPolicy), ...settings(kind, body)];
}

function purpose(kind, body) {
  switch (kind) {
    case "standardize":
      return ["mean 0, deviation 1 over everything seen"];
    case "minMax":
      return [`everything seen onto ${number(body.rangeMin)} to ${number(body.rangeMax || (body.rangeMin ? 0 : 1))}`];
    case "batchNorm":
      return ["each channel over all other axes"];
    case "layerNorm":
      return ["each sample over its trailing axes"];
    case "rmsNorm":
      return ["each sample by its root mean square"];
    case "groupNorm":
      return ["groups of channels of each sample"];
    case "instanceNorm":
      return ["each channel of each sample"];
    case "adaptiveInstanceNorm":
      return ["each channel gets a style's mean and deviation"];
    case "meanVarianceNorm":
      return [`over axes ${(body.axes?.length ? body.axes : [0, 2, 3]).join(", ")}`];
    case "lpNorm":
      return [`by the ${number(Number(body.p ?? 2))}-norm along axis ${body.axis ?? 1}`];
    case "localResponseNorm":
      return [`over ${counted(Number(body.size), "neighbouring channel")}`];
    default:
      return [];
  }
}

function policy(kind, running) {
  if (!KEEPING.has(kind)) return [];
  const stops = Number(running?.freezeAfterCount ?? 0);
  return [averaged(kind, running), stops > 0 && `stops after ${counted(stops, "row")}`].filter(Boolean);
}

function averaged(kind, running = {}) {
  if (running.batchAverage) return "average of the batches";
  if (running.batchEma) return `moving average, ${number(running.batchEma.newValueWeight)} to each new batch`;
  if (running.timeEma) return `halves what is ${span(Number.parseFloat(running.timeEma.halfLife))} old`;
  if (!running.cumulative && kind === "batchNorm") return "moving average, 0.1 to each new batch";
  return "cumulative";
}

function settings(kind, body) {
  const axis = body.channelAxis;
  return [
    body.eps !== undefined && `eps ${number(body.eps)}`,
    typeof body.clip === "number" && `clipped to ±${number(body.clip)}`,
    body.clip === true && "clipped",
    axis !== undefined && axis !== CHANNEL_AXIS[kind] && `channels on axis ${axis}`,
    body.renorm && "batch renormalization",
    Number(body.virtualBatchSize ?? 0) > 0 && `ghost batches of ${count(Number(body.virtualBatchSize))}`,
    body.nanPolicy === "NAN_POLICY_OMIT" && "leaves NaN out",
    (body.weight || body.bias) && "with weight and bias",
  ].filter(Boolean);
}
