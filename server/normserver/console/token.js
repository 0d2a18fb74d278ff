/** The token that the person brought: for this tab, as long as it is open, and nowhere else. */

const KEY = "normstats-token";
let held = stored();

function stored() {
  try {
    return sessionStorage.getItem(KEY) ?? "";
  } catch {
    return "";
  }
}

/** The token; empty without one. */
export const token = () => held;

/** Whether the server answers nobody without one, as its page says. */
export const isNeeded = document.querySelector('meta[name="normstats-token"]')?.content === "required";

/** Take another token, or none. Everybody who listens for `tokenchange` on the document is told. */
export function setToken(value) {
  held = value.trim();
  try {
    if (held) sessionStorage.setItem(KEY, held);
    else sessionStorage.removeItem(KEY);
  } catch {
    // Then until the page is left.
  }
  document.dispatchEvent(new Event("tokenchange"));
}
