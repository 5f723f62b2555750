// Blocks down, tokens across, on a canvas: one pixel per token and three per block are painted once, then scaled.

const ROW = 9; // pixels per block
const LEFT = 46; // pixels left of the cells, for block numbers and level brackets
const AXIS = 18; // pixels below them
const MINI = 14; // height of the overview that shows while zoomed

class MapView {
  constructor(frame, onWindow) {
    this.frame = frame;
    this.onWindow = onWindow;
    for (const name of ["brackets", "cells", "cursor", "mini"]) this[name] = frame.querySelector(`.${name}`);
    this.from = 0;
    this.to = 1;
  }

  setData(data) {
    this.data = data;
    this.from = 0;
    this.to = data.tokens;
  }

  paint(channel) {
    const { data } = this;
    const image = new OffscreenCanvas(Math.max(data.tokens, 1), Math.max(data.blocks.length * 3, 1));
    const context = image.getContext("2d");
    const pixels = context.createImageData(image.width, image.height);
    data.blocks.forEach((span, block) => {
      const row = channel.rows === "blocks" ? block : span;
      for (let token = 0; token < data.tokens; token++) {
        const on = data.processed(block, token);
        const plain = row < 0 && channel.rows !== "all";
        const alpha = plain ? 0.45 : 0.3 + 0.15 * data.bin(channel, row, token);
        for (let line = 0; line < 3; line++) {
          const at = 4 * ((block * 3 + line) * image.width + token);
          pixels.data.set(on ? [47, 111, 179] : [200, 100, 30], at);
          const hatch = (token + line) % 3 === 0 ? 0.45 : 0.06;
          pixels.data[at + 3] = 255 * (on ? alpha * (line === 2 ? 0.8 : 1) : hatch);
        }
      }
    });
    context.putImageData(pixels, 0, 0);
    this.image = image;
    this.draw();
  }

  draw() {
    const { data } = this;
    const width = Math.max(this.frame.clientWidth - LEFT - 2, 50);
    const height = data.blocks.length * ROW;
    const zoomed = this.to - this.from < data.tokens;
    const ratio = window.devicePixelRatio || 1;
    this.frame.style.height = `${height + AXIS + (zoomed ? MINI + 4 : 0)}px`;
    this.mini.hidden = !zoomed;
    const place = (canvas, left, top, w, h) => {
      Object.assign(canvas.style, { left: `${left}px`, top: `${top}px`, width: `${w}px`, height: `${h}px` });
      canvas.width = Math.round(w * ratio);
      canvas.height = Math.round(h * ratio);
      const context = canvas.getContext("2d");
      context.scale(ratio, ratio);
      context.fillStyle = context.strokeStyle = getComputedStyle(this.frame).color;
      return context;
    };
    const cells = place(this.cells, LEFT, 0, width, height + AXIS);
    cells.imageSmoothingEnabled = this.to - this.from > width;
    cells.drawImage(this.image, this.from, 0, this.to - this.from, this.image.height, 0, 0, width, height);
    this.drawAxis(cells, width, height);
    this.drawBrackets(place(this.brackets, 0, 0, LEFT, height + AXIS), height);
    place(this.cursor, LEFT, 0, width, height);
    if (zoomed) {
      const mini = place(this.mini, LEFT, height + AXIS, width, MINI);
      mini.drawImage(this.image, 0, 0, this.image.width, this.image.height, 0, 0, width, MINI);
      mini.lineWidth = 2;
      mini.strokeRect((this.from / data.tokens) * width, 1, ((this.to - this.from) / data.tokens) * width, MINI - 2);
    }
    this.drawCursor();
  }

  drawAxis(context, width, height) {
    context.font = "11px sans-serif";
    const shown = this.to - this.from;
    const ticks = Math.min(8, shown);
    for (let i = 0; i < ticks; i++) {
      const token = Math.round(this.from + (i * (shown - 1)) / Math.max(ticks - 1, 1));
      context.textAlign = i === 0 ? "left" : i === ticks - 1 ? "right" : "center";
      const x = i === 0 ? 0 : i === ticks - 1 ? width : ((token + 0.5 - this.from) * width) / shown;
      context.fillText(String(token), x, height + 14);
    }
  }

  drawBrackets(context, height) {
    context.font = "10px sans-serif";
    this.data.blocks.forEach((_, block) => {
      if (block % 5 === 0) context.fillText(String(block), 0, block * ROW + ROW);
    });
    for (const span of this.data.spans) {
      const x = 16 + 7 * span.depth;
      context.beginPath();
      context.moveTo(x + 4, span.first * ROW + 1);
      context.lineTo(x, span.first * ROW + 1);
      context.lineTo(x, (span.last + 1) * ROW - 1);
      context.lineTo(x + 4, (span.last + 1) * ROW - 1);
      context.stroke();
    }
    context.globalAlpha = 0.7;
    context.fillText(this.data.labels.token, 0, height + 14);
  }

  // Columns of the selected token and of the one under the pointer.
  drawCursor(selected = this.selected ?? -1, hovered = -1) {
    this.selected = selected;
    const ratio = window.devicePixelRatio || 1;
    const context = this.cursor.getContext("2d");
    context.clearRect(0, 0, this.cursor.width, this.cursor.height);
    const width = this.cursor.clientWidth / (this.to - this.from);
    context.lineWidth = 2;
    for (const [token, colour] of [[hovered, "#888"], [selected, "#f2a900"]]) {
      if (token < this.from || token >= this.to) continue;
      context.strokeStyle = colour;
      context.strokeRect((token - this.from) * width, 0, Math.max(width, 2), this.cursor.height / ratio);
    }
  }

  tokenAt(event) {
    const box = this.cells.getBoundingClientRect();
    const token = Math.floor(this.from + ((event.clientX - box.left) / box.width) * (this.to - this.from));
    return Math.max(0, Math.min(this.data.tokens - 1, token));
  }

  blockAt(event) {
    const block = Math.floor((event.clientY - this.cells.getBoundingClientRect().top) / ROW);
    return block >= 0 && block < this.data.blocks.length ? block : -1;
  }

  // Zoom by a factor around a token; a factor of Infinity shows all.
  zoom(factor, token = (this.from + this.to) / 2) {
    const size = Math.min(this.data.tokens, Math.max(16, (this.to - this.from) * factor));
    const share = (token - this.from) / (this.to - this.from);
    this.moveTo(token - share * size, size);
  }

  moveTo(from, size = this.to - this.from) {
    this.from = Math.round(Math.max(0, Math.min(from, this.data.tokens - size)));
    this.to = Math.min(this.data.tokens, this.from + Math.round(size));
    this.draw();
  }

  reveal(token) {
    if (token < this.from || token >= this.to) this.moveTo(token - (this.to - this.from) / 2);
  }
}
