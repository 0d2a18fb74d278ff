/** Questions that must be answered before anything happens. */

import { h, say, show } from "./dom.js";

/**
 * Ask. What goes wrong is said in the dialog, which stays, so that nothing that was typed is lost.
 *
 * @param {object} question
 * @param {string} question.title
 * @param {any[]} question.body elements; inputs in them are read by whoever asks
 * @param {string} question.yes what the button that does it says
 * @param {() => Promise<void> | void} question.act
 * @param {string} [question.note] a smaller word beneath
 * @param {any[]} [question.also] further buttons
 * @returns {Promise<boolean>} whether it was done
 */
export function ask({ title, body, yes, act, note = "", also = [] }) {
  return new Promise((resolve) => {
    let done = false;
    const wrong = h("p", { class: "wrong", role: "alert", hidden: true });
    const go = h("button", { type: "submit", class: "primary" }, yes);
    const no = h("button", { type: "button", class: "quiet", on: { click: () => dialog.close() } }, "Cancel");
    const form = h(
      "form",
      { method: "dialog" },
      h("h2", { id: "dialog-title" }, title),
      ...body,
      note && h("p", { class: "muted small" }, note),
      wrong,
      h("div", { class: "buttons" }, also, no, go),
    );
    const dialog = h("dialog", { "aria-labelledby": "dialog-title" }, form);
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      go.disabled = true;
      try {
        await act();
        done = true;
        dialog.close();
      } catch (error) {
        say(wrong, explained(error));
        show(wrong, true);
        go.disabled = false;
      }
    });
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(done);
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}

function explained(error) {
  if (error.status === 401) return `${error.message} (bring another token)`;
  return error.message;
}

/** Tell that something was done, for a few seconds. */
export function tell(text) {
  const toast = h("p", { class: "toast" }, text);
  document.getElementById("toasts").append(toast);
  setTimeout(() => toast.remove(), 6_000);
}
