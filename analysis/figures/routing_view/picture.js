// The text and the map as a picture to save: those tokens that the map shows. PNG at twice the size, or SVG.

import { BLUE, EDITED, GREEN, LEFT, ORANGE } from "./canvas.js";
import { SvgContext, pixelRuns } from "./svg.js";

const KEPT = [[0.1, 0.16], [0.22, 0.28], [0.35, 0.42], [0.5, 0.58], [0.66, 0.74]]; // as in view.css
const DECORATIONS = { // of a state: lines at shares of a token's height, colour and dashes
  dropped: { lines: [0.55], colour: ORANGE, dash: [] },
  absent: { lines: [0.5, 0.62], colour: null, dash: [] },
  merged: { lines: [0.93], colour: GREEN, dash: [4, 2] },
  light: { lines: [0.9, 1], colour: BLUE, dash: [] },
};
const SCALE = 2;
const TALLEST = 16384; // pixels of a canvas
const MOST_CELLS = 12000; // rectangles of an SVG
const GAP = 12;
const TITLE = 20;

// The picture as a blob, or null if it would be too large.
export async function picture(view, kind) {
  const parts = view.text.boxesOf(view.map.from, view.map.to);
  const textHeight = parts.reduce((most, { top, height }) => Math.max(most, top + height), 0);
  const width = Math.max(view.text.body.clientWidth, LEFT + view.map.cells.clientWidth) + 2 * GAP;
  const mapTop = GAP + TITLE + textHeight + GAP;
  const height = mapTop + view.map.height + GAP;
  if (kind === "svg") {
    const svg = new SvgContext(width, height);
    return draw(svg, view, parts, width, height, mapTop) ? new Blob([String(svg)], { type: "image/svg+xml" }) : null;
  }
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [Math.round(width * SCALE), Math.round(height * SCALE)];
  if (canvas.height > TALLEST || canvas.width > TALLEST) return null;
  const context = canvas.getContext("2d");
  context.scale(SCALE, SCALE);
  draw(context, view, parts, width, height, mapTop);
  return new Promise((done) => canvas.toBlob(done, "image/png"));
}

function draw(context, view, parts, width, height, mapTop) {
  const style = getComputedStyle(view.text.body);
  const ground = style.getPropertyValue("--st-background-color").trim();
  context.fillStyle = ground || "#fff";
  context.fillRect(0, 0, width, height);
  context.save();
  context.fillStyle = context.strokeStyle = style.color;
  context.font = `13px ${style.fontFamily}`;
  context.translate(GAP, GAP);
  context.fillText(view.caption, 0, 12);
  context.translate(0, TITLE);
  drawText(context, view, parts, style);
  context.restore();
  context.save();
  context.translate(GAP, mapTop);
  const drawn = drawMap(context, view.map, style.color);
  context.restore();
  return drawn;
}

function drawText(context, { data, level, text }, parts, style) {
  const bins = data.levels.length ? data.bins(text.channel, level) : null;
  const stateOf = (token) => (data.levels.length ? data.state(level, token) : "");
  context.save();
  for (const { token, left, top, width, height } of parts) {
    if (stateOf(token) !== "kept") continue;
    context.fillStyle = `rgb(${BLUE.join(" ")} / ${KEPT[bins[token]][token % 2]})`;
    context.fillRect(left, top, width, height);
  }
  context.font = `${style.fontSize} ${style.fontFamily}`;
  for (const { words, left, width, baseline, state } of lines(parts, stateOf)) {
    context.globalAlpha = state === "absent" ? 0.6 : 1;
    context.fillStyle = state === "dropped" ? `rgb(${ORANGE.join(" ")})` : style.color;
    context.fillText(words, left, baseline, width);
  }
  for (const { token, left, top, width, height } of parts) {
    const look = DECORATIONS[stateOf(token)];
    if (look) {
      context.globalAlpha = look.colour ? 1 : 0.6;
      underline(context, look.lines, look.colour ? `rgb(${look.colour.join(" ")})` : style.color, look.dash, left, top, width, height);
    }
    context.globalAlpha = 1;
    if (data.levels.length && data.isEdited(level, token)) underline(context, [1], EDITED, [2, 2], left, top, width, height);
  }
  context.restore();
}

function underline(context, shares, colour, dash, left, top, width, height) {
  context.strokeStyle = colour;
  context.lineWidth = shares.length > 1 ? 1 : 1.5;
  context.setLineDash(dash);
  for (const share of shares) {
    context.beginPath();
    context.moveTo(left, top + share * height);
    context.lineTo(left + width, top + share * height);
    context.stroke();
  }
  context.setLineDash([]);
}

// Neighbours on a line that look alike are drawn as one, so that scripts whose letters join are not torn apart.
function* lines(parts, stateOf) {
  let line = null;
  for (const { token, words, left, top, width, height, baseline } of parts) {
    const state = stateOf(token);
    if (line && line.state === state && Math.abs(line.top - top) < 1 && Math.abs(line.left + line.width - left) < 0.5) {
      line.words += words;
      line.width = left + width - line.left;
      continue;
    }
    if (line) yield line;
    line = { words, left, top, width, height, baseline, state };
  }
  if (line) yield line;
}

function drawMap(context, map, colour) {
  const [width, height] = [map.cells.clientWidth, map.rows];
  context.save();
  context.translate(LEFT, 0);
  if (context instanceof SvgContext) {
    const image = map.raster(map.from, map.to, map.to - map.from);
    const runs = pixelRuns(image.getContext("2d").getImageData(0, 0, image.width, image.height));
    if (runs.length > MOST_CELLS) return false;
    for (const [column, line, length, fill] of runs) {
      context.fillStyle = fill;
      context.fillRect((column * width) / image.width, (line * height) / image.height, (length * width) / image.width, height / image.height);
    }
  } else {
    context.imageSmoothingEnabled = false;
    context.drawImage(map.raster(map.from, map.to, Math.round(width * SCALE)), 0, 0, width, height);
  }
  map.drawEdited(context, width);
  context.font = "11px sans-serif";
  map.drawAxis(context, width, height);
  context.restore();
  context.fillStyle = context.strokeStyle = colour;
  map.drawBrackets(context, height);
  return true;
}
