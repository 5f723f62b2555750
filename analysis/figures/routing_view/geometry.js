// Where tokens lie on the canvases, and which of them are in view: numbers only, no DOM.

// The window of `size` tokens that begins at `from`, moved so that it lies within the prompt.
export function moved(from, size, tokens) {
  const start = Math.round(Math.max(0, Math.min(from, tokens - size)));
  return { from: start, to: Math.min(tokens, start + Math.round(size)) };
}

// A window zoomed by a factor around a token, to 16 tokens at least; a factor of Infinity shows all.
export function zoomed({ from, to }, factor, token, tokens) {
  const size = Math.min(tokens, Math.max(16, (to - from) * factor));
  return moved(token - ((token - from) / (to - from)) * size, size, tokens);
}

// The token at a share of the width of a window; the first or last one beside it.
export function tokenAtShare({ from, to }, share) {
  return Math.max(from, Math.min(to - 1, Math.floor(from + share * (to - from))));
}

// Tokens whose numbers stand below the map: the first and the last in view, and some between them.
export function ticks({ from, to }, width) {
  const count = Math.min(8, to - from, Math.floor(width / 60));
  return Array.from({ length: count }, (_, i) => Math.round(from + (i * (to - from - 1)) / Math.max(count - 1, 1)));
}

// Linear up to the typical size of a value, logarithmic beyond it: a few large scores would flatten all others.
export function squeeze(values) {
  const sizes = values.filter((v) => v).map(Math.abs).sort();
  const typical = sizes.find((_, i) => i >= sizes.length / 2) || 1;
  return (value) => Math.asinh(value / typical);
}

// A number with no more decimals than it needs, three at most.
export function short(number) {
  return String(Number(number.toFixed(3)));
}
