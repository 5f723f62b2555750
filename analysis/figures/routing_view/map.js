// Blocks down, tokens across, on a canvas. The tokens in the window are painted into one pixel column each, or several
// into one where there are more of them than pixels; that picture is then scaled.

import { BLUE, EDITED, GREEN, LEFT, LIT, ORANGE, SELECTED, columnAt, drawColumns, place } from "./canvas.js";
import { moved, ticks, zoomed } from "./geometry.js";
import { LOOKS } from "./model.js";

const ROW = 9; // pixels per block
const AXIS = 18; // pixels below the cells
const MINI = 14; // height of the overview that shows while zoomed

export class MapView {
  constructor(frame, onWindow) {
    this.frame = frame;
    this.onWindow = onWindow;
    for (const name of ["brackets", "cells", "cursor", "mini"]) this[name] = frame.querySelector(`.${name}`);
    this.from = 0;
    this.to = 1;
    this.selected = this.block = -1;
    this.lit = { tokens: [], first: 0, last: -1 }; // tokens that a lesson lights, in the blocks of a level
  }

  // New data; the window stays where it is if these are other numbers about the same tokens.
  setData(data, same) {
    this.data = data;
    if (!same) [this.from, this.to] = [0, data.tokens];
  }

  paint(channel) {
    this.channel = channel;
    this.overview = null;
    this.draw();
  }

  // Picture of a window of tokens: three pixels per block, at most `columns` across.
  raster(from, to, columns) {
    const { data, channel } = this;
    columns = Math.max(1, Math.min(columns, to - from));
    const image = new OffscreenCanvas(columns, Math.max(data.blocks.length * 3, 1));
    const context = image.getContext("2d");
    const pixels = context.createImageData(image.width, image.height);
    const every = (to - from) / columns;
    data.blocks.forEach((level, block) => {
      const plain = level === 0 && channel.rows === "levels";
      const looks = data.looks(block);
      const work = data.levels.some((each) => each.block === block) ? data.work.subarray(block * data.tokens) : null;
      const bins = plain ? null : data.bins(channel, channel.rows === "blocks" ? block : level);
      for (let column = 0; column < columns; column++) {
        const first = Math.floor(from + column * every);
        const last = Math.max(first + 1, Math.floor(from + (column + 1) * every));
        const counts = [0, 0, 0, 0]; // of each look
        let bin = 0;
        let spent = 0;
        for (let token = first; token < last; token++) {
          counts[looks[token]]++;
          if (looks[token] !== LOOKS.processed) continue;
          bin += bins ? bins[token] : 0;
          spent += work ? work[token] : 0;
        }
        const count = last - first;
        const on = counts[LOOKS.processed];
        const strength = plain ? (work ? 0.15 + (0.7 * spent) / Math.max(on, 1) : 0.45) : 0.3 + (0.15 * bin) / Math.max(on, 1);
        for (let line = 0; line < 3; line++) {
          const hatch = count > 1 ? 0.19 : (first + line) % 3 === 0 ? 0.45 : 0.06;
          const orange = (counts[LOOKS.unchanged] / count) * hatch;
          const green = line === 1 ? (0.85 * counts[LOOKS.merged]) / count : 0; // one line, which leads to the carrier
          const rails = line === 1 ? 0 : (0.4 * counts[LOOKS.light]) / count; // two
          const blue = (on / count) * strength * (line === 2 ? 0.8 : 1) + rails;
          const at = 4 * ((block * 3 + line) * columns + column);
          for (let c = 0; c < 3; c++) {
            pixels.data[at + c] = (BLUE[c] * blue + ORANGE[c] * orange + GREEN[c] * green) / (blue + orange + green || 1);
          }
          pixels.data[at + 3] = 255 * (blue + orange + green);
        }
      }
    });
    context.putImageData(pixels, 0, 0);
    return image;
  }

  draw() {
    const { data } = this;
    const width = Math.max(this.frame.clientWidth - LEFT - 2, 50);
    const height = data.blocks.length * ROW;
    const partial = this.to - this.from < data.tokens;
    this.frame.style.height = `${height + AXIS + (partial ? MINI + 4 : 0)}px`;
    this.mini.hidden = !partial;
    const cells = place(this.cells, LEFT, 0, width, height + AXIS);
    const image = this.raster(this.from, this.to, this.cells.width);
    cells.imageSmoothingEnabled = false;
    cells.drawImage(image, 0, 0, width, height);
    this.drawEdited(cells, width);
    this.drawAxis(cells, width, height);
    this.drawBrackets(place(this.brackets, 0, 0, LEFT, height + AXIS), height);
    place(this.cursor, LEFT, 0, width, height);
    if (partial) {
      const mini = place(this.mini, LEFT, height + AXIS, width, MINI);
      this.overview ??= this.raster(0, data.tokens, this.mini.width);
      mini.drawImage(this.overview, 0, 0, width, MINI);
      mini.lineWidth = 2;
      mini.strokeRect((this.from / data.tokens) * width, 1, ((this.to - this.from) / data.tokens) * width, MINI - 2);
    }
    this.drawCursor();
    this.onWindow();
  }

  // A bar above a token's cells in a level where an edit named it.
  drawEdited(context, width) {
    const { data, from, to } = this;
    const column = width / (to - from);
    context.fillStyle = EDITED;
    for (const { level, first, parent } of data.levels) {
      const shared = parent > 0 && data.levels[parent - 1].first === first; // then below the bars of the outer level
      for (let token = from; token < to; token++) {
        if (data.isEdited(level, token)) context.fillRect((token - from) * column, first * ROW + (shared ? 3 : 0), Math.max(column - 1, 1), 3);
      }
    }
  }

  // Height of the cells, and of the map without its overview.
  get rows() {
    return this.data.blocks.length * ROW;
  }

  get height() {
    return this.rows + AXIS;
  }

  drawAxis(context, width, height) {
    context.fillStyle = getComputedStyle(this.frame).color;
    ticks(this, width).forEach((token, i, { length }) => {
      context.textAlign = i === 0 ? "left" : i === length - 1 ? "right" : "center";
      const x = i === 0 ? 0 : i === length - 1 ? width : ((token + 0.5 - this.from) * width) / (this.to - this.from);
      context.fillText(token.toLocaleString(), x, height + 14);
    });
  }

  drawBrackets(context, height) {
    context.font = "10px sans-serif";
    this.data.blocks.forEach((_, block) => {
      if (block % 5 === 0) context.fillText(String(block), 0, block * ROW + ROW);
    });
    for (const { block, depth, first, last } of this.data.levels) {
      if (block >= 0) continue; // a part of that block, without brackets
      const x = 16 + 7 * depth;
      context.beginPath();
      context.moveTo(x + 4, first * ROW + 1);
      context.lineTo(x, first * ROW + 1);
      context.lineTo(x, (last + 1) * ROW - 1);
      context.lineTo(x + 4, (last + 1) * ROW - 1);
      context.stroke();
    }
    context.globalAlpha = 0.7;
    context.fillText(this.data.labels.token, 0, height + 14);
  }

  // With `tie`: first and last token of a group, which gets a frame.
  drawCursor(selected = this.selected, hovered = -1, tie = null) {
    this.selected = selected;
    const context = drawColumns(this.cursor, this, selected, hovered, tie);
    this.drawLit(context);
    if (this.block < 0) return;
    context.strokeStyle = SELECTED;
    context.strokeRect(0, this.block * ROW, this.cursor.clientWidth, ROW);
  }

  drawLit(context) {
    const { tokens, first, last } = this.lit;
    const width = this.cursor.clientWidth / (this.to - this.from);
    context.strokeStyle = LIT;
    for (const token of tokens) {
      if (token < this.from || token >= this.to) continue;
      context.strokeRect((token - this.from) * width + 1, first * ROW + 1, Math.max(width - 2, 1), (last + 1 - first) * ROW - 2);
    }
  }

  tokenAt(event) {
    return columnAt(event, this.cells, this);
  }

  blockAt(event) {
    const block = Math.floor((event.clientY - this.cells.getBoundingClientRect().top) / ROW);
    return block >= 0 && block < this.data.blocks.length ? block : -1;
  }

  // Zoom by a factor around a token; a factor of Infinity shows all.
  zoom(factor, token = (this.from + this.to) / 2) {
    Object.assign(this, zoomed(this, factor, token, this.data.tokens));
    this.draw();
  }

  moveTo(from, size = this.to - this.from) {
    Object.assign(this, moved(from, size, this.data.tokens));
    this.draw();
  }

  reveal(token) {
    if (token < this.from || token >= this.to) this.moveTo(token - (this.to - this.from) / 2);
  }
}
