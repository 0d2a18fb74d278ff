/** What time it is at the server, whose clock need not be this machine's. */

let ahead = 0;
let known = false;

/** Learn from a message that was made just now, and says when. */
export function learn(timestamp) {
  const sample = Date.parse(timestamp) - Date.now();
  if (!Number.isFinite(sample)) return;
  // A message that was long on its way makes the server look slow: the largest is the nearest, and drifts are followed.
  ahead = known ? Math.max(sample, ahead - 5) : sample;
  known = true;
}

/** Milliseconds since 1970, there. */
export const serverNow = () => Date.now() + ahead;

/** Seconds since a timestamp of the server's. */
export const secondsSince = (timestamp) =>
  timestamp ? Math.max(0, (serverNow() - Date.parse(timestamp)) / 1000) : NaN;
