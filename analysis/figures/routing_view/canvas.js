// What the canvases share: their place, and the columns of tokens.

import { tokenAtShare } from "./geometry.js";

export const LEFT = 46; // pixels left of the cells, for block numbers, level brackets and axes
export const BLUE = [47, 111, 179];
export const ORANGE = [200, 100, 30];
export const GREEN = [23, 134, 107]; // merged tokens
export const SELECTED = "#f2a900";
export const LIT = "#7c4dff"; // what a lesson speaks of; as in view.css
export const EDITED = "#b0279a"; // as in view.css

// Size a canvas in CSS pixels; its context, in the frame's text colour.
export function place(canvas, left, top, width, height) {
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

// The columns of the selected token and of the one under the pointer, on a canvas of their own, and those of a group.
export function drawColumns(canvas, { from, to }, selected, hovered, group = null) {
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
  if (group) {
    context.strokeStyle = `rgb(${GREEN})`;
    context.setLineDash([4, 3]);
    context.strokeRect((group[0] - from) * width, 0, (group[1] + 1 - group[0]) * width, canvas.height / ratio);
    context.setLineDash([]);
  }
  return context;
}

export function columnAt(event, canvas, window) {
  const box = canvas.getBoundingClientRect();
  return tokenAtShare(window, (event.clientX - box.left) / box.width);
}
