// The prompt as text, in a few long pieces. Tokens are coloured with the CSS Custom Highlight API, so there is no DOM node
// per token and the text can be selected, copied and searched. A browser works through all highlights of a piece whenever
// the page changes: so only what is in view is coloured, and what follows the pointer is drawn on a canvas.

import { GREEN, LIT, SELECTED, place } from "./canvas.js";
import { BINS } from "./model.js";

const STATES = ["dropped", "absent", "merged", "light"];
for (let bin = 0; bin < BINS; bin++) STATES.push(`kept-${bin}a`, `kept-${bin}b`);
const EDITED_TEXT = "edited";
const FOUND = "found";
const PIECE = 128; // tokens
const MARGIN = 0.5; // heights of the view that are coloured above and below it

// Highlights belong to the document: the views on a page share those of a name.
const opened = new Set();
const shared = new Map();

function share(name) {
  const own = [...opened].map((view) => view.highlights[name]).filter((each) => each?.size);
  const together = own.length === 1 ? own[0] : new Highlight(...own.flatMap((each) => [...each]));
  together.priority = own[0]?.priority ?? 0;
  shared.set(name, together);
  CSS.highlights?.set(`routing-${name}`, together);
}

export class TextView {
  constructor(element, root) {
    this.element = element;
    this.root = root;
    this.body = element.querySelector(".body");
    this.marks = element.parentElement.querySelector(".marks");
    this.highlights = {}; // by name, of this view
    this.marked = null; // tokens that a learner marked, while what the levels did is hidden
    this.lit = [];
    element.addEventListener("scroll", () => {
      this.frame ??= requestAnimationFrame(() => {
        this.frame = undefined;
        this.colour();
        this.mark();
      });
    });
  }

  close() {
    opened.delete(this);
    const names = Object.keys(this.highlights);
    this.highlights = {};
    for (const name of names) {
      if (CSS.highlights?.get(`routing-${name}`) !== shared.get(name)) continue; // another script's view has put its own
      if (opened.size) share(name);
      else CSS.highlights?.delete(`routing-${name}`);
    }
  }

  // With `visible`, white space and tokens without text get a sign; the text is then no longer the prompt to copy.
  setText(data, visible) {
    this.data = data;
    if (!visible) {
      this.starts = data.starts;
      this.ends = data.ends;
      return this.fill(data.text);
    }
    this.starts = new Uint32Array(data.tokens);
    this.ends = new Uint32Array(data.tokens);
    const parts = [];
    let length = 0;
    for (let token = 0; token < data.tokens; token++) {
      const again = token && data.starts[token] === data.starts[token - 1] && data.ends[token] === data.ends[token - 1];
      const empty = data.starts[token] === data.ends[token];
      const text = empty ? `⟨${data.piece(token)}⟩` : data.text.slice(data.starts[token], data.ends[token]);
      const shown = again && !empty ? "" : text.replaceAll(" ", "·").replaceAll("\t", "⇥\t").replaceAll("\n", "⏎\n");
      this.starts[token] = shown ? length : this.starts[token - 1];
      length += shown.length;
      this.ends[token] = length;
      parts.push(shown);
    }
    this.fill(parts.join(""));
  }

  // Cut the text where a token begins and the one before has ended.
  fill(text) {
    const cuts = [0];
    for (let token = PIECE; token < this.data.tokens; token++) {
      if (this.starts[token] < this.ends[token - 1]) continue;
      if (this.starts[token] > cuts.at(-1)) cuts.push(this.starts[token]);
      token += PIECE - 1;
    }
    this.pieces = cuts.map((start, index) => ({ start, node: document.createTextNode(text.slice(start, cuts[index + 1])) }));
    this.body.replaceChildren(...this.pieces.map(({ node }) => {
      const span = document.createElement("span");
      span.append(node);
      return span;
    }));
  }

  paint(level, channel) {
    this.level = level;
    this.channel = channel;
    this.from = this.to = 0;
    this.colour();
  }

  // Colour the tokens in view, or all of them.
  colour(all = false) {
    const { data } = this;
    if (!CSS.highlights || !(data.levels.length || this.marked)) return this.close();
    const [from, to] = all ? [0, data.tokens] : this.inView(0);
    if (from >= this.from && to <= this.to) return;
    [this.from, this.to] = all ? [from, to] : this.inView(MARGIN);
    const highlights = Object.fromEntries([...STATES, EDITED_TEXT].map((name) => [name, new Highlight()]));
    highlights[EDITED_TEXT].priority = 1;
    const bins = this.marked ? null : data.bins(this.channel, this.level);
    for (let token = this.from; token < this.to; token++) {
      const again = token && this.starts[token] === this.starts[token - 1] && this.ends[token] === this.ends[token - 1];
      const range = again ? null : this.range(token);
      if (!range || (this.marked && !this.marked.has(token))) continue;
      const state = this.marked ? "dropped" : data.state(this.level, token);
      highlights[state === "kept" ? `kept-${bins[token]}${token % 2 ? "b" : "a"}` : state].add(range);
      if (!this.marked && data.isEdited(this.level, token)) highlights[EDITED_TEXT].add(range);
    }
    for (const name of [...STATES, EDITED_TEXT]) this.highlight(name, highlights[name]);
  }

  highlight(name, highlight) {
    opened.add(this);
    this.highlights[name] = highlight;
    if (CSS.highlights) share(name);
  }

  // First token in view and the one after the last, with so many frames more above and below.
  inView(frames) {
    const { top, bottom, height } = this.element.getBoundingClientRect();
    const firstBelow = (y) => {
      let low = 0;
      let high = this.data.tokens;
      while (low < high) {
        const middle = (low + high) >> 1;
        if ((this.box(middle)?.bottom ?? -Infinity) > y) high = middle;
        else low = middle + 1;
      }
      return low;
    };
    return [firstBelow(top - frames * height), Math.min(this.data.tokens, firstBelow(bottom + frames * height) + 1)];
  }

  markFound(tokens) {
    const highlight = new Highlight(...tokens.map((token) => this.range(token)).filter(Boolean));
    highlight.priority = 2;
    this.highlight(FOUND, highlight);
  }

  // Draw boxes around the selected tokens in view and the one under the pointer.
  mark(selected = this.selected, hovered = -1, until = this.until ?? selected) {
    this.selected = selected;
    this.until = until;
    const frame = this.element.getBoundingClientRect();
    if (this.marks.clientWidth !== Math.round(frame.width) || this.marks.clientHeight !== Math.round(frame.height)) {
      place(this.marks, 0, 0, Math.round(frame.width), Math.round(frame.height));
    }
    const context = this.marks.getContext("2d");
    context.clearRect(0, 0, frame.width, frame.height);
    context.lineWidth = 2;
    const boxes = [[hovered, "#888", "rgb(128 128 128 / 0.3)"]];
    const [first, last] = [Math.min(selected, until), Math.max(selected, until)];
    const [from, to] = first === last ? [first, last] : [Math.max(first, this.from), Math.min(last, this.to - 1)];
    for (let token = from; token <= to; token++) boxes.push([token, SELECTED, "rgb(242 194 48 / 0.35)"]);
    for (const [token, edge, fill] of boxes) {
      context.strokeStyle = edge;
      context.fillStyle = fill;
      for (const box of this.boxes(token, frame)) {
        context.fillRect(...box);
        context.strokeRect(...box);
      }
    }
    this.drawLit(context, frame);
    if (!this.marked) this.drawTie(context, frame, hovered < 0 && selected === until ? selected : hovered);
  }

  // Frames around what a lesson lights, as far as it is in view.
  drawLit(context, frame) {
    context.strokeStyle = LIT;
    context.lineWidth = 3;
    for (const token of this.lit) {
      if (token < this.from || token >= this.to) continue;
      for (const [left, top, width, height] of this.boxes(token, frame)) context.strokeRect(left, top - 1, width, height + 2);
    }
    context.lineWidth = 2;
  }

  // Tie a merged token, or the members of a carrier's group, to the carrier: dashed frames, and a line between them.
  drawTie(context, frame, token) {
    const group = this.data.group(this.level, token);
    if (!group) return;
    context.strokeStyle = `rgb(${GREEN})`;
    context.setLineDash([4, 3]);
    let before = null;
    for (let member = group[0]; member <= group[1]; member++) {
      if (this.data.ties(this.level, member).into < 0) continue;
      for (const box of this.boxes(member, frame)) {
        context.strokeRect(...box);
        const [x, y] = [box[0] + box[2] / 2, box[1] + box[3] + 2];
        context.beginPath();
        if (before && Math.abs(before[1] - y) < box[3] / 2) context.moveTo(...before);
        else context.moveTo(box[0], y); // a new line of text
        context.lineTo(x, y);
        context.stroke();
        before = [x, y];
      }
    }
    context.setLineDash([]);
  }

  // Where a token stands within a frame: [left, top, width, height] on each line of the text.
  boxes(token, frame) {
    const lines = this.range(token) ? [...this.liveRange(token).getClientRects()] : [];
    return lines.map((line) => [line.left - frame.left, line.top - frame.top, line.width, line.height]);
  }

  // Where the texts of tokens stand on their lines, from the top of the first: one entry for each line of a token.
  boxesOf(from, to) {
    const frame = this.body.getBoundingClientRect();
    const context = document.createElement("canvas").getContext("2d");
    const { fontSize, fontFamily } = getComputedStyle(this.body);
    context.font = `${fontSize} ${fontFamily}`;
    const { fontBoundingBoxAscent: ascent, fontBoundingBoxDescent: descent } = context.measureText("x");
    const parts = [];
    for (let token = from; token < to; token++) {
      const again = token && this.starts[token] === this.starts[token - 1] && this.ends[token] === this.ends[token - 1];
      if (again || !this.range(token)) continue;
      const range = this.liveRange(token);
      const whole = [...range.getClientRects()].filter(({ width }) => width > 0);
      const { startContainer: node, startOffset } = range;
      const words = range.toString();
      if (whole.length < 2) whole.forEach((box) => parts.push({ token, words, box }));
      else { // the token goes on to the next line
        let at = startOffset;
        for (const character of words) {
          range.setStart(node, at);
          range.setEnd(node, (at += character.length));
          const box = range.getBoundingClientRect();
          if (box.width > 0) parts.push({ token, words: character, box });
        }
      }
    }
    const first = parts.reduce((least, { box }) => Math.min(least, box.top), Infinity);
    return parts.map(({ token, words, box: { left, top, width, height } }) => ({
      token, words: words.replace(/\s/g, " "), left: left - frame.left, top: top - first, width, height,
      baseline: top - first + (height - ascent - descent) / 2 + ascent,
    }));
  }

  // The piece that has a character.
  piece(offset) {
    let low = 0;
    let high = this.pieces.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (this.pieces[middle].start <= offset) low = middle;
      else high = middle - 1;
    }
    return this.pieces[low];
  }

  // Where a token's text is; null if it has none.
  range(token) {
    if (!this.pieces || token < 0 || this.starts[token] === this.ends[token]) return null;
    const { node, start } = this.piece(this.starts[token]);
    return new StaticRange({
      startContainer: node, startOffset: this.starts[token] - start, endContainer: node, endOffset: this.ends[token] - start,
    });
  }

  reveal(token) {
    const box = this.box(token);
    const frame = this.element.getBoundingClientRect();
    if (!box || (box.top >= frame.top && box.bottom <= frame.bottom)) return;
    this.element.scrollTop += box.top - frame.top - frame.height / 2;
    this.colour();
  }

  // A range in the document: unlike those of highlights it can be asked where it is.
  liveRange(token) {
    const { startContainer: node, startOffset, endOffset } = this.range(token);
    const range = document.createRange();
    range.setStart(node, startOffset);
    range.setEnd(node, endOffset);
    return range;
  }

  // Where a token stands; one without text stands where the next one with text does.
  box(token) {
    while (token >= 0 && token < this.data.tokens && this.starts[token] === this.ends[token]) token++;
    return token < 0 || token >= this.data.tokens ? null : this.liveRange(token).getBoundingClientRect();
  }

  // The token under the pointer; with `near`, also the one beside which it is.
  tokenAt(event, near = false) {
    const caret = document.caretPositionFromPoint?.(event.clientX, event.clientY, { shadowRoots: [this.root] });
    const piece = this.pieces.find(({ node }) => node === caret?.offsetNode);
    if (!piece) return -1;
    const at = piece.start + caret.offset;
    for (const offset of [at, at - 1]) { // the caret may stand right of the character that was hit
      const token = this.data.tokenAfter(offset, this.ends);
      if (offset < this.starts[token] || offset >= this.ends[token]) continue;
      for (const r of this.liveRange(token).getClientRects()) {
        if (r.left <= event.clientX && event.clientX <= r.right && r.top <= event.clientY && event.clientY <= r.bottom) return token;
      }
    }
    return near ? this.data.tokenAfter(at - (caret.getClientRect()?.right < event.clientX ? 1 : 0), this.ends) : -1;
  }
}
