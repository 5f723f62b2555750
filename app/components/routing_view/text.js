// The prompt as one text node. Tokens are coloured with the CSS Custom Highlight API, so there is no DOM node per token
// and the text can be selected, copied and searched. In long prompts only what is in view is coloured.

const STATES = ["dropped", "absent"];
for (let bin = 0; bin < BINS; bin++) STATES.push(`kept-${bin}a`, `kept-${bin}b`);
const MARKS = { found: 1, hover: 2, selected: 3 }; // what lies on top of the states, by priority
const FEW = 2000; // tokens that are coloured whether they are in view or not

class TextView {
  constructor(element, root) {
    this.element = element;
    this.root = root;
    element.addEventListener("scroll", () => {
      this.frame ??= requestAnimationFrame(() => {
        this.frame = undefined;
        this.colour();
      });
    });
  }

  close() {
    for (const name of [...STATES, ...Object.keys(MARKS)]) CSS.highlights?.delete(`routing-${name}`);
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
    this.level = level;
    this.channel = channel;
    this.from = this.to = 0;
    this.colour();
  }

  // Colour the tokens in view, or all of them.
  colour(all = this.data.tokens <= FEW) {
    const { data } = this;
    if (!CSS.highlights || !data.spans.length) return this.close();
    const [from, to] = all ? [0, data.tokens] : this.inView(0);
    if (from >= this.from && to <= this.to) return;
    [this.from, this.to] = all ? [from, to] : this.inView(1);
    const highlights = Object.fromEntries(STATES.map((name) => [name, new Highlight()]));
    const bins = data.bins(this.channel, this.level);
    for (let token = this.from; token < this.to; token++) {
      const again = token && this.starts[token] === this.starts[token - 1] && this.ends[token] === this.ends[token - 1];
      const range = again ? null : this.range(token);
      if (!range) continue;
      const state = data.state(this.level, token);
      highlights[state === "kept" ? `kept-${bins[token]}${token % 2 ? "b" : "a"}` : state].add(range);
    }
    for (const name of STATES) CSS.highlights.set(`routing-${name}`, highlights[name]);
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

  // Mark tokens: "selected", "hover" or "found".
  mark(kind, tokens) {
    if (!CSS.highlights) return;
    const highlight = new Highlight(...tokens.map((token) => this.range(token)).filter(Boolean));
    highlight.priority = MARKS[kind];
    CSS.highlights.set(`routing-${kind}`, highlight);
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
    this.colour();
  }

  // A range in the document: unlike those of highlights it can be asked where it is.
  place(token) {
    const range = document.createRange();
    range.setStart(this.element.firstChild, this.starts[token]);
    range.setEnd(this.element.firstChild, this.ends[token]);
    return range;
  }

  // Where a token stands; one without text stands where the next one with text does.
  box(token) {
    while (token >= 0 && token < this.data.tokens && this.starts[token] === this.ends[token]) token++;
    return token < 0 || token >= this.data.tokens ? null : this.place(token).getBoundingClientRect();
  }

  tokenAt(event) {
    const caret = document.caretPositionFromPoint?.(event.clientX, event.clientY, { shadowRoots: [this.root] });
    if (!caret || caret.offsetNode !== this.element.firstChild) return -1;
    for (const offset of [caret.offset, caret.offset - 1]) { // the caret may stand right of the character that was hit
      const token = this.data.tokenAfter(offset, this.ends);
      if (offset < this.starts[token] || offset >= this.ends[token]) continue;
      for (const r of this.place(token).getClientRects()) {
        if (r.left <= event.clientX && event.clientX <= r.right && r.top <= event.clientY && event.clientY <= r.bottom) return token;
      }
    }
    return -1;
  }
}
