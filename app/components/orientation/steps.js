// Where the words of an orientation stand: below what they are about, above it where there is no room, or in the middle.

const GAP = 12;

// All in CSS pixels; `target` is null if it is not on the page.
export function place(target, bubble, screen) {
  const clamp = (value, most) => Math.max(GAP, Math.min(value, most - GAP));
  if (!target) return { left: (screen.width - bubble.width) / 2, top: (screen.height - bubble.height) / 2 };
  const left = clamp(target.left, screen.width - bubble.width);
  const below = target.bottom + GAP;
  if (below + bubble.height <= screen.height - GAP) return { left, top: below };
  const above = target.top - GAP - bubble.height;
  return { left, top: above >= GAP ? above : clamp(screen.height - bubble.height - GAP, screen.height - bubble.height) };
}

// The names that Streamlit gives the elements with some keys, as a selector; of "tabs" the row of their names.
export function selector({ targets, part }) {
  const inside = part === "tabs" ? ' [role="tablist"]' : "";
  return targets.map((key) => `.st-key-${key.replace(/[^a-zA-Z0-9_-]/g, "-")}${inside}`).join(", ");
}
