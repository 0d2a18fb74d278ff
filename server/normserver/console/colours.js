/** The style sheet's colours, for what is drawn on a canvas. */

const probe = document.createElement("span");
probe.hidden = true;
const resolved = new Map();
document.addEventListener("themechange", () => resolved.clear());

/** A custom property as a colour that a canvas takes; `alpha` thins it. */
export function colour(name, alpha = 1) {
  const key = `${name} ${alpha}`;
  if (!resolved.has(key)) {
    if (!probe.isConnected) document.body.append(probe);
    probe.style.color = `color-mix(in srgb, var(--${name}) ${alpha * 100}%, transparent)`;
    resolved.set(key, getComputedStyle(probe).color);
  }
  return resolved.get(key);
}

// From night to day: lightness alone tells more from less, so that it reads in grey as well, and a photograph as one.
const STOPS = ["#0c1424", "#152c52", "#1f4c8c", "#3577cf", "#6ea5f0", "#b2d0fb", "#f4f8ff"].map(channels);

/** 256 colours from little to much, as red, green, blue. */
export const RAMP = ramp();

function channels(hex) {
  return [1, 3, 5].map((start) => Number.parseInt(hex.slice(start, start + 2), 16));
}

function ramp() {
  const table = new Uint8Array(256 * 3);
  for (let step = 0; step < 256; step += 1) {
    const at = (step / 255) * (STOPS.length - 1);
    const from = Math.min(Math.floor(at), STOPS.length - 2);
    for (let channel = 0; channel < 3; channel += 1) {
      const [low, high] = [STOPS[from][channel], STOPS[from + 1][channel]];
      table[3 * step + channel] = Math.round(low + (high - low) * (at - from));
    }
  }
  return table;
}
