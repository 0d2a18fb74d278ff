/** The server's calls: reads by their fields, changes by a message, in protobuf's JSON. */

import { isNeeded, token } from "./token.js";

/** What the server refused, and why. */
export class ApiError extends Error {
  constructor(status, { code = "", message = "", field = "", reason = "" } = {}) {
    super(message || `the server answered ${status}`);
    this.status = status;
    this.code = code;
    this.field = field;
    this.reason = reason;
  }
}

function headers(more = {}, bearer = token()) {
  return bearer ? { ...more, Authorization: `Bearer ${bearer}` } : more;
}

/** As fetch, but that what needs a token is not sent without: the browser would log the refusal as an error. */
async function sent(address, options) {
  if (isNeeded && !options.headers.Authorization) {
    document.dispatchEvent(new Event("tokenwanted"));
    throw new ApiError(401, { code: "UNAUTHENTICATED", message: "This server asks who you are: bring a token." });
  }
  return answered(await fetch(address, options));
}

async function answered(response) {
  if (response.ok) return response;
  const said = await response.text();
  let problem = { message: said };
  try {
    problem = JSON.parse(said);
  } catch {
    // Somebody in between answered, not the server.
  }
  if (response.status === 401) document.dispatchEvent(new Event("tokenwanted"));
  throw new ApiError(response.status, problem);
}

function address(method, fields) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(fields)) if (value !== "" && value !== undefined) query.set(name, value);
  const text = query.toString();
  return `api/${method}${text ? `?${text}` : ""}`;
}

/** Ask. Fields are named as the proto names them. */
export async function read(method, fields = {}, signal = undefined) {
  const response = await sent(address(method, fields), { headers: headers(), signal, cache: "no-store" });
  return response.json();
}

/** Ask, and keep listening: the response, whose body is a stream of events. */
export async function listen(method, fields, signal) {
  return sent(address(method, fields), { headers: headers(), signal, cache: "no-store" });
}

/** Change something. */
export async function change(method, message) {
  const response = await sent(`api/${method}`, {
    method: "POST",
    headers: headers({ "Content-Type": "application/json" }),
    body: JSON.stringify(message),
  });
  return response.json();
}

/** Ask something harmless with a token that is not in use yet: an error if the server does not know it. */
export async function tryToken(value) {
  await sent(address("GetActivity", { limit: 1 }), { headers: headers({}, value), cache: "no-store" });
}
