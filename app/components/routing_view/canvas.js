// What the canvases share: their place, and the columns of tokens.

const LEFT = 46; // pixels left of the cells, for block numbers, level brackets and axes
const BLUE = [47, 111, 179];
const ORANGE = [200, 100, 30];
const SELECTED = "#f2a900";
const EDITED = "#b0279a"; // as in view.css

// Size a canvas in CSS pixels; its context, in the frame's text colour.
function place(canvas, left, top, width, height) {
  const ratio = window.devicePixelRatio || 1;
  Object.assign(canvas.style, { left: `${left}px`, top: `${top}px`, width: `${width}px`, height: `${height}px` });
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  context.fillStyle = context.strokeStyle = getComputedStyle(canvas.parentElement).color;
  context.font = "11px sans-serif";
  return context;
}

// The columns of the selected token and of the one under the pointer, on a canvas of their own.
function drawColumns(canvas, { from, to }, selected, hovered) {
  const ratio = window.devicePixelRatio || 1;
  const context = canvas.getContext("2d");
  const width = canvas.clientWidth / (to - from);
  context.clearRect(0, 0, canvas.width, canvas.height);
  context.lineWidth = 2;
  for (const [token, colour] of [[hovered, "#888"], [selected, SELECTED]]) {
    if (token < from || token >= to) continue;
    context.strokeStyle = colour;
    context.strokeRect((token - from) * width, 0, Math.max(width, 2), canvas.height / ratio);
  }
  return context;
}

// A number with no more decimals than it needs, three at most.
function short(number) {
  return String(Number(number.toFixed(3)));
}

function columnAt(event, canvas, { from, to }) {
  const box = canvas.getBoundingClientRect();
  const token = Math.floor(from + ((event.clientX - box.left) / box.width) * (to - from));
  return Math.max(from, Math.min(to - 1, token));
}
