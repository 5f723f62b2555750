// The prompt as text, in a few long pieces. Tokens are coloured with the CSS Custom Highlight API, so there is no DOM node
// per token and the text can be selected, copied and searched. A browser works through all highlights of a piece whenever
// the page changes: so only what is in view is coloured, and what follows the pointer is drawn on a canvas.

import { SELECTED, place } from "./canvas.js";
import { BINS } from "./model.js";

const STATES = ["dropped", "absent"];
for (let bin = 0; bin < BINS; bin++) STATES.push(`kept-${bin}a`, `kept-${bin}b`);
const EDITED_TEXT = "edited";
const FOUND = "found";
const PIECE = 128; // tokens
const MARGIN = 0.5; // heights of the view that are coloured above and below it

export class TextView {
  constructor(element, root) {
    this.element = element;
    this.root = root;
    this.body = element.querySelector(".body");
    this.marks = element.parentElement.querySelector(".marks");
    element.addEventListener("scroll", () => {
      this.frame ??= requestAnimationFrame(() => {
        this.frame = undefined;
        this.colour();
        this.mark();
      });
    });
  }

  close() {
    for (const name of [...STATES, EDITED_TEXT, FOUND]) CSS.highlights?.delete(`routing-${name}`);
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
    if (!CSS.highlights || !data.levels.length) return this.close();
    const [from, to] = all ? [0, data.tokens] : this.inView(0);
    if (from >= this.from && to <= this.to) return;
    [this.from, this.to] = all ? [from, to] : this.inView(MARGIN);
    const highlights = Object.fromEntries([...STATES, EDITED_TEXT].map((name) => [name, new Highlight()]));
    highlights[EDITED_TEXT].priority = 1;
    const bins = data.bins(this.channel, this.level);
    for (let token = this.from; token < this.to; token++) {
      const again = token && this.starts[token] === this.starts[token - 1] && this.ends[token] === this.ends[token - 1];
      const range = again ? null : this.range(token);
      if (!range) continue;
      const state = data.state(this.level, token);
      highlights[state === "kept" ? `kept-${bins[token]}${token % 2 ? "b" : "a"}` : state].add(range);
      if (data.isEdited(this.level, token)) highlights[EDITED_TEXT].add(range);
    }
    for (const name of [...STATES, EDITED_TEXT]) CSS.highlights.set(`routing-${name}`, highlights[name]);
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
    CSS.highlights?.set(`routing-${FOUND}`, highlight);
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
      const lines = this.range(token) ? this.liveRange(token).getClientRects() : [];
      context.strokeStyle = edge;
      context.fillStyle = fill;
      for (const line of lines) {
        const box = [line.left - frame.left, line.top - frame.top, line.width, line.height];
        context.fillRect(...box);
        context.strokeRect(...box);
      }
    }
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
