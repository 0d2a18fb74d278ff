// Before anything is drawn: the theme that was chosen, as modules come too late for that.
try {
  const chosen = localStorage.getItem("normstats-theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
} catch {
  // No storage, no choice.
}
