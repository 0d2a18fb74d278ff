/** The token: brought in a dialog, forgotten by a button. */

import { tryToken } from "./api.js";
import { ask, tell } from "./dialog.js";
import { h, say } from "./dom.js";
import { setToken, token } from "./token.js";

let asking = false;

/** The bar's button, and the dialog when the server asks for a token. */
export function accessBy(button) {
  const describe = () => {
    say(button.querySelector("span"), token() ? "Token" : "Read-only");
    button.setAttribute("aria-label", token() ? "Token" : "Read-only: bring a token");
    button.title = token()
      ? "What this tab may do, its token allows"
      : "Bring a token to take snapshots, freeze or restore";
  };
  button.addEventListener("click", () => bring());
  document.addEventListener("tokenwanted", () => bring("This server asks who you are."));
  document.addEventListener("tokenchange", describe);
  describe();
}

async function bring(why = "") {
  if (asking) return;
  asking = true;
  const input = h("input", {
    type: "password",
    id: "token",
    autocomplete: "off",
    spellcheck: "false",
    required: true,
    placeholder: "normstats_…",
  });
  const forget = h("button", { type: "button", class: "quiet bad" }, "Forget the token");
  forget.addEventListener("click", () => {
    forget.closest("dialog").close();
    setToken("");
    tell("The token is forgotten.");
  });
  await ask({
    title: token() ? "Another token" : "Bring a token",
    body: [
      h(
        "p",
        {},
        why ||
          "With a token of a wide enough scope it takes snapshots, freezes and restores. Without one it only reads.",
      ),
      h("label", { for: "token" }, "Token"),
      input,
    ],
    note: "It stays in this tab until that is closed, and is sent to this server alone. normstats token new makes one.",
    yes: "Use it",
    also: token() ? [forget] : [],
    act: () => use(input.value),
  });
  asking = false;
}

/** Try it before it takes the old one's place. */
async function use(value) {
  await tryToken(value.trim());
  setToken(value);
  tell("The token is in use.");
}
