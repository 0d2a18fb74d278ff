/** Light, dark, or as the system has it. */

const KEY = "normstats-theme";
const NEXT = { system: "light", light: "dark", dark: "system" };
const SAID = { system: "as the system has it", light: "light", dark: "dark" };
const DARK = matchMedia("(prefers-color-scheme: dark)");

const chosen = () => document.documentElement.dataset.theme ?? "system";

/** Whether it is dark now. */
export const isDark = () => (chosen() === "system" ? DARK.matches : chosen() === "dark");

function choose(theme) {
  if (theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  try {
    if (theme === "system") localStorage.removeItem(KEY);
    else localStorage.setItem(KEY, theme);
  } catch {
    // Then until the page is left.
  }
  document.dispatchEvent(new Event("themechange"));
}

/** The button that goes round: it says what is, and what it would do. */
export function switchBy(button) {
  const describe = () => {
    button.setAttribute("aria-label", `Theme: ${SAID[chosen()]}. Change to: ${SAID[NEXT[chosen()]]}`);
    button.title = `Theme: ${SAID[chosen()]}`;
  };
  button.addEventListener("click", () => {
    choose(NEXT[chosen()]);
    describe();
  });
  DARK.addEventListener("change", () => document.dispatchEvent(new Event("themechange")));
  describe();
}
