// The controls, and what links text, map and the numbers of one token.

const views = new WeakMap();

export default function (component) {
  const { data, parentElement } = component;
  let view = views.get(parentElement);
  if (!view) {
    view = new RoutingView(parentElement);
    views.set(parentElement, view);
  }
  view.send = component.setStateValue;
  view.show(data);
  return () => view.close();
}

class RoutingView {
  constructor(root) {
    for (const name of ["levels", "legend", "token", "title", "colour", "visible", "search", "zoom"]) {
      this[name] = root.querySelector(`.${name}`);
    }
    this.text = new TextView(root.querySelector(".text"), root);
    this.map = new MapView(root.querySelector(".map"));
    this.level = 0;
    this.selected = -1;
    const { cells, mini } = this.map;
    this.text.element.addEventListener("click", (event) => this.select(this.text.tokenAt(event)));
    this.text.element.addEventListener("mousemove", (event) => this.hover(this.text.tokenAt(event)));
    cells.addEventListener("mousemove", (event) => this.drag(event) || this.hover(this.map.tokenAt(event), this.map.blockAt(event)));
    for (const element of [this.text.element, cells]) {
      element.addEventListener("keydown", (event) => this.walk(event));
      element.addEventListener("mouseleave", () => this.hover(-1));
    }
    cells.addEventListener("mousedown", (event) => (this.grip = { x: event.clientX, from: this.map.from, moved: false }));
    cells.addEventListener("click", (event) => this.grip?.moved || this.select(this.map.tokenAt(event)));
    cells.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && !event.shiftKey) return; // the page scrolls
      event.preventDefault();
      this.map.zoom(event.deltaY > 0 ? 1.25 : 0.8, this.map.tokenAt(event));
    }, { passive: false });
    mini.addEventListener("mousemove", (event) => event.buttons && this.pan(event));
    mini.addEventListener("mousedown", (event) => this.pan(event));
    for (const [name, factor] of [["in", 0.5], ["out", 2], ["all", Infinity]]) {
      this.zoom.querySelector(`.${name}`).addEventListener("click", () => this.map.zoom(factor, this.selected < 0 ? undefined : this.selected));
    }
    this.colour.addEventListener("change", () => this.paint());
    this.visible.addEventListener("change", () => this.write());
    this.search.addEventListener("input", () => this.find());
    this.search.addEventListener("keydown", (event) => event.key === "Enter" && this.next(event.shiftKey ? -1 : 1));
    this.resize = new ResizeObserver(() => this.data && this.map.draw());
  }

  close() {
    this.text.close();
    this.resize.disconnect();
  }

  show(data) {
    this.resize.observe(this.map.frame);
    const fresh = this.data?.id !== data.id;
    if (fresh) {
      this.data = new RoutingData(data);
      this.level = Math.max(0, Math.min(data.level ?? this.level, data.spans.length - 1));
      this.selected = Math.min(data.selected ?? -1, data.tokens - 1);
      this.map.setData(this.data);
      this.label();
    }
    if (!fresh) return this.paint();
    this.write();
    if (this.selected >= 0) this.select(this.selected);
  }

  // Labels, in the language of the page, and the choice of colours.
  label() {
    const { labels, channels } = this.data;
    for (const element of [...this.colour.parentElement.parentElement.querySelectorAll("[data-label]"), ...this.zoom.children]) {
      const label = labels[element.dataset.label];
      if (element.dataset.label.startsWith("zoom")) element.setAttribute("aria-label", element.title = label);
      else element.textContent = label;
    }
    this.search.placeholder = labels.search;
    this.search.setAttribute("aria-label", labels.search);
    this.text.element.setAttribute("aria-label", labels.text);
    this.map.cells.setAttribute("aria-label", labels.map);
    this.levels.setAttribute("aria-label", labels.levels);
    this.legend.setAttribute("aria-label", labels.legend);
    const before = this.colour.value || this.data.colour;
    this.colour.replaceChildren(...channels.map((channel) => new Option(channel.label, channel.key)));
    this.colour.value = this.data.channel(before).key;
  }

  write() {
    this.text.setText(this.data, this.visible.checked);
    this.paint();
    this.find();
  }

  paint() {
    const channel = this.data.channel(this.colour.value);
    this.drawControls(channel);
    this.text.paint(this.level, channel.rows === "blocks" ? this.data.channel("score") : channel);
    this.map.paint(channel);
    this.title.textContent = this.data.labels.mapTitle
      .replace("{blocks}", this.data.blocks.length).replace("{tokens}", this.data.tokens.toLocaleString()).replace("{colour}", channel.label);
    this.text.mark("selected", [this.selected]);
    this.describe(this.selected);
    this.report();
  }

  drawControls(channel) {
    const { data } = this;
    this.levels.replaceChildren(
      ...data.spans.map((span, index) => {
        const button = document.createElement("button");
        button.type = "button";
        button.setAttribute("role", "radio");
        button.setAttribute("aria-checked", String(index === this.level));
        button.textContent = span.title;
        button.addEventListener("click", () => {
          this.level = index;
          this.paint();
          this.levels.children[index].focus();
        });
        return button;
      }),
    );
    if (!data.spans.length) {
      this.legend.textContent = data.labels.dense;
      return;
    }
    const kept = document.createElement("li");
    kept.append(`${data.labels.kept} (${channel.label}) `);
    for (let bin = 0; bin < BINS; bin++) {
      const swatch = document.createElement("i");
      swatch.style.backgroundColor = `rgb(47 111 179 / ${0.13 + 0.15 * bin})`;
      kept.append(swatch);
    }
    const entries = [kept];
    for (const name of data.spans[this.level].parent < 0 ? ["dropped"] : ["dropped", "absent"]) {
      const item = document.createElement("li");
      const sample = document.createElement("s");
      sample.className = name;
      sample.textContent = data.labels[name];
      item.append(sample);
      entries.push(item);
    }
    this.legend.replaceChildren(...entries);
    if (!CSS.highlights) this.legend.append(data.labels.oldBrowser);
  }

  hover(token, block = -1) {
    if (token === this.hovered && block === this.hoveredBlock) return;
    this.hovered = token;
    this.hoveredBlock = block;
    this.text.mark("hover", [token]);
    this.map.drawCursor(this.selected, token);
    this.describe(token < 0 ? this.selected : token, block);
  }

  drag(event) {
    if (!event.buttons || !this.grip) return false;
    const tokens = ((event.clientX - this.grip.x) / this.map.cells.clientWidth) * (this.map.to - this.map.from);
    this.grip.moved ||= Math.abs(event.clientX - this.grip.x) > 3;
    if (this.grip.moved) this.map.moveTo(this.grip.from - tokens);
    return this.grip.moved;
  }

  pan(event) {
    const box = this.map.mini.getBoundingClientRect();
    this.map.moveTo(((event.clientX - box.left) / box.width) * this.data.tokens - (this.map.to - this.map.from) / 2);
  }

  walk(event) {
    if (event.key === "/") {
      event.preventDefault();
      return this.search.focus();
    }
    if (event.key === "Escape") return this.select(-1);
    if (event.key === "ArrowUp" || event.key === "ArrowDown") {
      event.preventDefault();
      const step = event.key === "ArrowDown" ? 1 : -1;
      this.level = Math.max(0, Math.min(this.data.spans.length - 1, this.level + step));
      return this.paint();
    }
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const end = { Home: 0, End: this.data.tokens - 1 }[event.key];
    if (step === undefined && end === undefined) return;
    event.preventDefault();
    this.select(end ?? Math.max(0, Math.min(this.data.tokens - 1, this.selected + step)));
  }

  select(token) {
    this.selected = token;
    this.text.mark("selected", [token]);
    this.map.drawCursor(token);
    if (token >= 0) {
      this.text.reveal(token);
      this.map.reveal(token);
    }
    this.describe(token);
    this.report();
  }

  // Tell the page what is shown, once it has stayed so for a moment: for links and for what Python draws.
  report() {
    clearTimeout(this.pending);
    const shown = JSON.stringify({ level: this.level, selected: this.selected, colour: this.colour.value });
    if (shown === this.reported) return;
    this.pending = setTimeout(() => {
      this.reported = shown;
      this.send?.("shown", JSON.parse(shown));
    }, 150);
  }

  find() {
    const query = this.search.value.toLowerCase();
    this.matches = [];
    for (let token = 0; query && token < this.data.tokens; token++) {
      if (this.data.piece(token).toLowerCase().includes(query)) this.matches.push(token);
    }
    this.text.mark("found", this.matches);
    this.search.title = query ? `${this.matches.length}` : "";
  }

  next(step) {
    if (!this.matches.length) return;
    const after = this.matches.findIndex((token) => token > this.selected);
    const before = this.matches.findLastIndex((token) => token < this.selected);
    const index = step > 0 ? (after < 0 ? 0 : after) : before < 0 ? this.matches.length - 1 : before;
    this.select(this.matches[index]);
  }

  describe(token, block = -1) {
    const { data } = this;
    const { labels } = data;
    this.token.replaceChildren();
    if (token < 0) {
      this.token.textContent = labels.hint;
      return;
    }
    const name = document.createElement("b");
    name.textContent = JSON.stringify(data.piece(token));
    this.token.append(`${labels.tokenNumber} ${token} `, name, ` (id ${data.ids[token]})`);
    if (block >= 0) {
      this.token.append(`, ${labels.block} ${block}: ${data.processed(block, token) ? labels.processed : labels.unchanged}`);
    }
    const surprise = data.values.surprisal?.[token];
    if (surprise !== undefined && !Number.isNaN(surprise)) {
      this.token.append(`, ${labels.surprise.replace("{nats}", surprise.toFixed(2))}`);
    }
    data.spans.forEach((span, index) => {
      const state = data.state(index, token);
      const at = (key) => data.value(data.channel(key), index, token);
      const parts = [labels[`${state}State`]];
      if (state !== "absent") parts.push(`${labels.score} ${at("score").toFixed(3)} (${labels.threshold} 0)`);
      if (state === "kept") {
        parts.push(`${labels.weight} ${Math.max(0, Math.min(1, at("score"))).toFixed(3)}`);
        parts.push(`${labels.added} ${(100 * at("bypass")).toFixed(1)}%`);
      }
      this.token.append(`\n${span.name}: ${parts.join(", ")}`);
    });
  }
}
