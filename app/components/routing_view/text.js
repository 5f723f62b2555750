// The prompt as one text node. Tokens are coloured with the CSS Custom Highlight API, so there is no DOM node per token
// and the text can be selected, copied and searched.

const HIGHLIGHTS = ["dropped", "absent", "found", "hover", "selected"].map((name) => `routing-${name}`);
for (let bin = 0; bin < BINS; bin++) HIGHLIGHTS.push(`routing-kept-${bin}a`, `routing-kept-${bin}b`);

class TextView {
  constructor(element, root) {
    this.element = element;
    this.root = root;
  }

  close() {
    for (const name of HIGHLIGHTS) CSS.highlights?.delete(name);
  }

  // With `visible`, white space and tokens without text get a sign; the text is then no longer the prompt to copy.
  setText(data, visible) {
    this.data = data;
    if (!visible) {
      this.starts = data.starts;
      this.ends = data.ends;
      this.element.textContent = data.text;
      return;
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
    this.element.textContent = parts.join("");
  }

  paint(level, channel) {
    if (!CSS.highlights) return;
    const { data } = this;
    const ranges = new Map(HIGHLIGHTS.map((name) => [name, []]));
    for (let token = 0; token < data.tokens; token++) {
      const range = this.range(token);
      if (!range || !data.spans.length) continue;
      if (token && this.starts[token] === this.starts[token - 1] && this.ends[token] === this.ends[token - 1]) continue;
      const state = data.state(level, token);
      const name = state === "kept" ? `kept-${data.bin(channel, level, token)}${token % 2 ? "b" : "a"}` : state;
      ranges.get(`routing-${name}`).push(range);
    }
    for (const [name, list] of ranges) {
      if (!["routing-selected", "routing-hover", "routing-found"].includes(name)) CSS.highlights.set(name, new Highlight(...list));
    }
  }

  // Mark tokens: "selected", "hover" or "found".
  mark(kind, tokens) {
    const highlight = new Highlight(...tokens.map((token) => this.range(token)).filter(Boolean));
    highlight.priority = { found: 1, hover: 2, selected: 3 }[kind];
    CSS.highlights?.set(`routing-${kind}`, highlight);
  }

  range(token) {
    const node = this.element.firstChild;
    if (!node || token < 0 || this.starts[token] === this.ends[token]) return null;
    return new StaticRange({
      startContainer: node, startOffset: this.starts[token], endContainer: node, endOffset: this.ends[token],
    });
  }

  reveal(token) {
    const box = this.box(token);
    const frame = this.element.getBoundingClientRect();
    if (!box || (box.top >= frame.top && box.bottom <= frame.bottom)) return;
    this.element.scrollTop += box.top - frame.top - frame.height / 2;
  }

  box(token) {
    if (!this.range(token)) return null;
    const range = document.createRange();
    range.setStart(this.element.firstChild, this.starts[token]);
    range.setEnd(this.element.firstChild, this.ends[token]);
    return range.getBoundingClientRect();
  }

  tokenAt(event) {
    const caret = document.caretPositionFromPoint?.(event.clientX, event.clientY, { shadowRoots: [this.root] });
    if (!caret || caret.offsetNode !== this.element.firstChild) return -1;
    for (const offset of [caret.offset, caret.offset - 1]) { // the caret may stand right of the character that was hit
      const token = this.tokenOf(offset);
      if (token < 0) continue;
      const range = document.createRange();
      range.setStart(this.element.firstChild, this.starts[token]);
      range.setEnd(this.element.firstChild, this.ends[token]);
      for (const r of range.getClientRects()) {
        if (r.left <= event.clientX && event.clientX <= r.right && r.top <= event.clientY && event.clientY <= r.bottom) return token;
      }
    }
    return -1;
  }

  // The first token of the character at an offset, by bisection.
  tokenOf(offset) {
    let low = 0;
    let high = this.data.tokens - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.ends[middle] > offset) high = middle;
      else low = middle + 1;
    }
    return this.starts[low] <= offset && offset < this.ends[low] ? low : -1;
  }
}
