// Text and map of one trace. The prompt is a single text node; tokens are coloured with the CSS Custom Highlight API,
// so there is no DOM node per token and the text can be selected, copied and searched.

const BINS = 5; // fifths of the kept tokens of a level, by score
const ROW = 9; // pixels per block in the map
const BRACKETS = 46; // pixels left of the map for block numbers and level brackets
const NAMES = [];
for (let bin = 0; bin < BINS; bin++) NAMES.push(`routing-kept-${bin}a`, `routing-kept-${bin}b`);
NAMES.push("routing-dropped", "routing-absent", "routing-selected");

const views = new WeakMap();

export default function (component) {
  const { data, parentElement } = component;
  let view = views.get(parentElement);
  if (!view) {
    view = new View(parentElement);
    views.set(parentElement, view);
  }
  view.show(data);
  return () => view.close();
}

function decode(text, Type) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  return new Type(bytes.buffer);
}

class View {
  constructor(root) {
    this.root = root;
    for (const name of ["levels", "legend", "text", "token", "map", "brackets", "cells", "cursor"]) {
      this[name] = root.querySelector(`.${name}`);
    }
    this.title = root.querySelector(".map-title");
    this.level = 0;
    this.selected = -1;
    this.text.addEventListener("click", (event) => this.select(this.tokenAtPoint(event)));
    for (const element of [this.text, this.cells]) element.addEventListener("keydown", (event) => this.walk(event));
    this.cells.addEventListener("click", (event) => this.select(this.tokenAtColumn(event)));
    this.cells.addEventListener("mousemove", (event) => this.hover(event));
    this.cells.addEventListener("mouseleave", () => this.describe(this.selected));
    this.resize = new ResizeObserver(() => this.data && this.drawMap());
    this.resize.observe(this.map);
  }

  close() {
    for (const name of NAMES) CSS.highlights?.delete(name);
    this.resize.disconnect();
  }

  show(data) {
    this.resize.observe(this.map);
    if (this.data?.id !== data.id) {
      this.selected = -1;
      this.level = Math.min(this.level, Math.max(data.spans.length - 1, 0));
      this.arrays = {
        starts: decode(data.starts, Uint32Array),
        ends: decode(data.ends, Uint32Array),
        scores: decode(data.scores, Float32Array),
        shares: decode(data.shares, Float32Array),
        kept: decode(data.kept, Uint8Array),
      };
      this.text.textContent = data.text;
    }
    this.data = data;
    this.drawControls();
    this.drawText();
    this.drawMap();
    this.describe(this.selected);
  }

  // The state of a token at a level: "kept", "dropped", or "absent" if an outer level dropped it already.
  state(level, token) {
    const at = level * this.data.tokens + token;
    if (this.arrays.kept[at]) return "kept";
    return Number.isNaN(this.arrays.scores[at]) ? "absent" : "dropped";
  }

  bin(level, token) {
    const score = this.arrays.scores[level * this.data.tokens + token];
    return this.data.spans[level].edges.filter((edge) => score > edge).length;
  }

  drawControls() {
    this.levels.replaceChildren(
      ...this.data.spans.map((span, index) => {
        const button = document.createElement("button");
        button.type = "button";
        button.setAttribute("role", "radio");
        button.setAttribute("aria-checked", String(index === this.level));
        button.textContent = `${span.name}: ${span.kept.toLocaleString()} of ${span.reached.toLocaleString()} kept`;
        button.addEventListener("click", () => {
          this.level = index;
          this.show(this.data);
        });
        return button;
      }),
    );
    const kept = document.createElement("li");
    kept.append("kept, by fifths of the score ");
    for (let bin = 0; bin < BINS; bin++) {
      const swatch = document.createElement("i");
      swatch.style.backgroundColor = `rgb(47 111 179 / ${0.13 + 0.15 * bin})`;
      kept.append(swatch);
    }
    const entries = [kept];
    for (const [name, label] of [["dropped", "dropped here"], ["absent", "dropped at an outer level"]]) {
      if (name === "absent" && this.data.spans[this.level]?.parent < 0) continue;
      const item = document.createElement("li");
      const sample = document.createElement("s");
      sample.className = name;
      sample.textContent = label;
      item.append(sample);
      entries.push(item);
    }
    this.legend.replaceChildren(...(this.data.spans.length ? entries : []));
  }

  drawText() {
    if (!CSS.highlights) {
      this.legend.textContent = "This browser cannot colour text (CSS Custom Highlight API); use the map below.";
      return;
    }
    const node = this.text.firstChild;
    const ranges = new Map(NAMES.map((name) => [name, []]));
    const { starts, ends } = this.arrays;
    for (let token = 0; token < this.data.tokens; token++) {
      if (!node || starts[token] === ends[token] || !this.data.spans.length) continue;
      if (token && starts[token] === starts[token - 1] && ends[token] === ends[token - 1]) continue;
      const state = this.state(this.level, token);
      const name = state === "kept" ? `kept-${this.bin(this.level, token)}${token % 2 ? "b" : "a"}` : state;
      ranges.get(`routing-${name}`).push(this.range(node, token));
    }
    for (const [name, list] of ranges) if (name !== "routing-selected") CSS.highlights.set(name, new Highlight(...list));
    this.markSelected();
  }

  range(node, token) {
    return new StaticRange({
      startContainer: node, startOffset: this.arrays.starts[token],
      endContainer: node, endOffset: this.arrays.ends[token],
    });
  }

  markSelected() {
    const node = this.text.firstChild;
    const list = this.selected >= 0 && node ? [this.range(node, this.selected)] : [];
    const highlight = new Highlight(...list);
    highlight.priority = 1;
    CSS.highlights?.set("routing-selected", highlight);
  }

  drawMap() {
    const { data } = this;
    const width = Math.max(this.map.clientWidth - BRACKETS - 2, 50);
    const height = data.blocks.length * ROW;
    const ratio = window.devicePixelRatio || 1;
    this.map.style.height = `${height + 18}px`;
    this.title.textContent =
      `Who is processed where: ${data.blocks.length} blocks down, ${data.tokens.toLocaleString()} tokens across. ` +
      "Blue: processed, darker with a higher score at the block's level. Hatched: passes the block unchanged.";
    for (const [canvas, left, w] of [[this.cells, BRACKETS, width], [this.cursor, BRACKETS, width], [this.brackets, 0, BRACKETS]]) {
      canvas.style.left = `${left}px`;
      canvas.style.width = `${w}px`;
      canvas.style.height = `${height + 18}px`;
      canvas.width = Math.round(w * ratio);
      canvas.height = Math.round((height + 18) * ratio);
    }
    const context = this.cells.getContext("2d");
    context.scale(ratio, ratio);
    context.imageSmoothingEnabled = data.tokens > width;
    context.drawImage(this.paint(), 0, 0, width, height);
    context.fillStyle = getComputedStyle(this.text).color;
    context.font = "11px sans-serif";
    const ticks = Math.min(8, data.tokens);
    for (let i = 0; i < ticks; i++) {
      const token = Math.round((i * (data.tokens - 1)) / Math.max(ticks - 1, 1));
      context.textAlign = i === 0 ? "left" : i === ticks - 1 ? "right" : "center";
      const x = i === 0 ? 0 : i === ticks - 1 ? width : ((token + 0.5) * width) / data.tokens;
      context.fillText(String(token), x, height + 14);
    }
    this.drawBrackets(ratio, height);
    this.drawCursor();
  }

  // One pixel per token horizontally; three per block vertically, so that hatching and block edges show.
  paint() {
    const { data } = this;
    const image = new OffscreenCanvas(Math.max(data.tokens, 1), data.blocks.length * 3);
    const context = image.getContext("2d");
    const pixels = context.createImageData(image.width, image.height);
    data.blocks.forEach((span, block) => {
      for (let token = 0; token < data.tokens; token++) {
        const on = span < 0 || this.arrays.kept[span * data.tokens + token];
        const alpha = span < 0 ? 0.45 : on ? 0.35 + 0.13 * this.bin(span, token) : 0;
        for (let line = 0; line < 3; line++) {
          const at = 4 * ((block * 3 + line) * image.width + token);
          const colour = on ? [47, 111, 179] : [179, 89, 26];
          pixels.data.set(colour, at);
          const hatch = (token + line) % 3 === 0 ? 0.4 : 0.06;
          pixels.data[at + 3] = 255 * (on ? alpha * (line === 2 ? 0.8 : 1) : hatch);
        }
      }
    });
    context.putImageData(pixels, 0, 0);
    return image;
  }

  drawBrackets(ratio, height) {
    const context = this.brackets.getContext("2d");
    context.scale(ratio, ratio);
    context.fillStyle = context.strokeStyle = getComputedStyle(this.text).color;
    context.font = "10px sans-serif";
    this.data.blocks.forEach((span, block) => {
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
    context.fillText("token", 0, height + 14);
  }

  drawCursor(token = this.selected) {
    const context = this.cursor.getContext("2d");
    context.clearRect(0, 0, this.cursor.width, this.cursor.height);
    if (token < 0) return;
    const ratio = window.devicePixelRatio || 1;
    const width = this.cursor.width / this.data.tokens;
    context.strokeStyle = "#f2a900";
    context.lineWidth = 2 * ratio;
    context.strokeRect(token * width, 0, Math.max(width, 2), this.data.blocks.length * ROW * ratio);
  }

  tokenAtPoint(event) {
    const caret = document.caretPositionFromPoint?.(event.clientX, event.clientY, { shadowRoots: [this.root] });
    if (!caret || caret.offsetNode !== this.text.firstChild) return this.selected;
    const { starts, ends } = this.arrays;
    let offset = caret.offset;
    for (const at of [offset, offset - 1]) { // the caret may stand right of the character that was hit
      for (let token = 0; token < this.data.tokens; token++) {
        if (starts[token] <= at && at < ends[token]) {
          const box = document.createRange();
          box.setStart(this.text.firstChild, starts[token]);
          box.setEnd(this.text.firstChild, ends[token]);
          for (const r of box.getClientRects()) {
            if (r.left <= event.clientX && event.clientX <= r.right && r.top <= event.clientY && event.clientY <= r.bottom) return token;
          }
        }
      }
    }
    return this.selected;
  }

  tokenAtColumn(event) {
    const box = this.cells.getBoundingClientRect();
    const token = Math.floor(((event.clientX - box.left) / box.width) * this.data.tokens);
    return Math.max(0, Math.min(this.data.tokens - 1, token));
  }

  hover(event) {
    const box = this.cells.getBoundingClientRect();
    const block = Math.floor((event.clientY - box.top) / ROW);
    this.describe(this.tokenAtColumn(event), block < this.data.blocks.length ? block : -1);
  }

  walk(event) {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (event.key === "Escape") return this.select(-1);
    const end = { Home: 0, End: this.data.tokens - 1 }[event.key];
    if (step === undefined && end === undefined) return;
    event.preventDefault();
    this.select(end ?? Math.max(0, Math.min(this.data.tokens - 1, this.selected + step)));
  }

  select(token) {
    this.selected = token;
    this.markSelected();
    this.drawCursor();
    this.describe(token);
  }

  describe(token, block = -1) {
    this.token.replaceChildren();
    if (token < 0) {
      this.token.textContent = "Click a token, or walk with the arrow keys, to read its numbers.";
      return;
    }
    const { data, arrays } = this;
    const name = document.createElement("b");
    name.textContent = JSON.stringify(data.pieces[token]);
    this.token.append(`Token ${token} `, name, ` (id ${data.ids[token]})`);
    if (block >= 0) {
      const span = data.blocks[block];
      const on = span < 0 || arrays.kept[span * data.tokens + token];
      this.token.append(`, block ${block}: ${on ? "processed" : "passes unchanged"}`);
    }
    data.spans.forEach((span, index) => {
      const at = index * data.tokens + token;
      const score = arrays.scores[at];
      const state = this.state(index, token);
      const weight = Math.max(0, Math.min(1, score)).toFixed(3);
      this.token.append(
        `\n${span.name}: ` +
          (state === "absent"
            ? "not reached, dropped at an outer level"
            : `${state}, score ${score.toFixed(3)} (threshold 0)` +
              (state === "kept" ? `, weight ${weight}, bypass added ${(100 * arrays.shares[at]).toFixed(1)}% of the stream's norm` : "")),
      );
    });
  }
}
