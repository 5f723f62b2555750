// What the keys do: left and right walk the tokens; up and down walk the blocks on the map, the levels elsewhere.

// `at` is what is selected now, `most` how many tokens, blocks and levels there are. The answer is what changes:
// { search: true }, { block }, { level }, or { token, anchor }; null where the key means nothing.
export function walk({ key, shiftKey }, at, most, onMap) {
  const limit = (value, count) => Math.max(0, Math.min(count - 1, value));
  if (key === "/") return { search: true };
  if (key === "Escape") return { block: -1, token: -1, anchor: -1 };
  const down = { ArrowDown: 1, ArrowUp: -1 }[key];
  if (down !== undefined && onMap) return { block: limit(at.block + down, most.blocks) };
  if (down !== undefined) return { level: 1 + limit(at.level - 1 + down, Math.max(1, most.levels)) };
  const right = { ArrowRight: 1, ArrowLeft: -1 }[key];
  const end = { Home: 0, End: most.tokens - 1 }[key];
  if (right === undefined && end === undefined) return null;
  const token = end ?? limit((shiftKey ? at.until : at.selected) + right, most.tokens);
  return { token, anchor: shiftKey && at.selected >= 0 ? at.selected : token };
}
