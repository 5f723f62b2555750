// The controls, and what links text, map, lane and the numbers of one token.

import { BLUE } from "./canvas.js";
import { short } from "./geometry.js";
import { walk } from "./keys.js";
import { LaneView } from "./lane.js";
import { MapView } from "./map.js";
import { BINS, RoutingData } from "./model.js";
import { picture } from "./picture.js";
import { litParts, litTokens, toggled } from "./spotlight.js";
import { TextView } from "./text.js";

const REST = 60; // milliseconds
const REPORTING = 150; // the same: what is shown stays for a moment before the page is told
const MARKING = 400; // the same: a learner marks several tokens in a row
const PARTS = ["levels", "map", "lane", "token"]; // that a lesson can light
const LEVELS = 8; // whose numbers of a token are in sight at once
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

export class RoutingView {
  constructor(root) {
    for (const name of ["levels", "legend", "token", "title", "laneTitle", "colour", "visible", "search", "matches", "zoom"]) {
      this[name] = root.querySelector(`.${name}`);
    }
    this.root = root;
    this.text = new TextView(root.querySelector(".text"), root);
    this.lane = new LaneView(root.querySelector(".lane"));
    this.map = new MapView(root.querySelector(".map"), () => this.drawLane());
    this.level = 1;
    this.selected = this.until = -1; // the ends of what is selected; -1 if nothing is
    this.found = [];
    const { cells, mini } = this.map;
    this.listen(this.text.element, (event) => this.text.tokenAt(event));
    this.text.element.addEventListener("mousedown", (pressed) => {
      this.dragged = false;
      const from = this.text.tokenAt(pressed, true);
      addEventListener("mouseup", (released) => {
        if (Math.hypot(released.clientX - pressed.clientX, released.clientY - pressed.clientY) < 4) return;
        const to = this.text.tokenAt(released, true); // also beside the text, or outside of it
        this.dragged = from >= 0 && to >= 0;
        if (this.dragged) this.select(to, from);
      }, { once: true });
    });
    this.listen(cells, (event) => this.map.tokenAt(event), (event) => this.map.blockAt(event));
    this.listen(this.lane.points, (event) => this.lane.tokenAt(event));
    cells.addEventListener("mousedown", (event) => (this.grip = { x: event.clientX, from: this.map.from, moved: false }));
    cells.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && !event.shiftKey) return; // the page scrolls
      event.preventDefault();
      this.map.zoom((event.deltaY || event.deltaX) > 0 ? 1.25 : 0.8, this.map.tokenAt(event));
    }, { passive: false });
    mini.addEventListener("mousemove", (event) => event.buttons && this.pan(event));
    mini.addEventListener("mousedown", (event) => this.pan(event));
    for (const [name, factor] of [["in", 0.5], ["out", 2], ["all", Infinity]]) {
      this.zoom.querySelector(`.${name}`).addEventListener("click", () => this.map.zoom(factor, this.selected < 0 ? undefined : this.selected));
    }
    for (const kind of ["png", "svg"]) this.zoom.querySelector(`.${kind}`).addEventListener("click", () => this.save(kind));
    this.colour.addEventListener("change", () => this.paint());
    this.visible.addEventListener("change", () => this.write());
    this.search.addEventListener("input", () => this.find());
    this.search.addEventListener("keydown", (event) => event.key === "Enter" && this.next(event.shiftKey ? -1 : 1));
    this.resize = new ResizeObserver(() => {
      if (!this.data) return;
      this.map.draw();
      this.text.colour();
      this.mark();
    });
    this.print = () => this.data && this.text.colour(true);
    this.waiting = new Map(); // what the page will be told in a moment: timers and functions, by name
    this.leave = (event) => this.tell() && event.preventDefault(); // the link waits for it
    this.elsewhere = (event) => {
      const path = event.composedPath();
      if (!path.includes(this.root) && !path.some(({ localName }) => localName === "a")) this.tell(); // what is pressed is about what is shown
    };
    this.spotlight = null; // what a lesson lights and hides
    this.pointed = null; // a term in the lesson's text that is pointed at
    this.light = (event) => {
      this.pointed = event.detail;
      if (this.data) this.shine();
    };
  }

  // What all views of tokens do alike: hover, click, keys.
  listen(element, tokenAt, blockAt = () => -1) {
    element.addEventListener("mousemove", (event) => this.drag(event) || this.hover(tokenAt(event), blockAt(event)));
    element.addEventListener("mouseleave", () => this.hover(-1));
    element.addEventListener("keydown", (event) => this.press(event, element === this.map.cells));
    element.addEventListener("click", (event) => {
      if (this.grip?.moved) return (this.grip = null); // that was dragging
      this.map.block = blockAt(event);
      if (element === this.text.element && this.dragged) return (this.dragged = false);
      const token = tokenAt(event);
      if (this.text.marked && token >= 0) this.markTokens([token]);
      this.select(token, event.shiftKey && this.selected >= 0 ? this.selected : token);
    });
  }

  // A closed view sends nothing: that would overwrite what its successor shows.
  close() {
    this.send = null;
    this.text.close();
    this.resize.disconnect();
    removeEventListener("beforeprint", this.print);
    removeEventListener("subllm-light", this.light);
    removeEventListener("subllm-leave", this.leave);
    removeEventListener("click", this.elsewhere, true);
  }

  show(bytes) {
    this.resize.observe(this.map.frame);
    addEventListener("beforeprint", this.print);
    addEventListener("subllm-light", this.light);
    addEventListener("subllm-leave", this.leave);
    addEventListener("click", this.elsewhere, true);
    const data = new RoutingData(bytes);
    if (this.data?.version === data.version && JSON.stringify(this.data.shown) === JSON.stringify(data.shown)) {
      this.veil(data.spotlight);
      return this.paint();
    }
    const same = this.data?.id === data.id; // then these are numbers of other edits, or more of them, or in another language
    const told = !same || JSON.stringify(this.data.shown) !== JSON.stringify(data.shown);
    const added = same && data.channels.find(({ key, rows }) => rows === "blocks" && !this.data[key]);
    this.data = data;
    this.map.setData(data, same);
    if (!same) {
      this.map.block = -1;
      this.search.value = "";
    }
    if (told) {
      this.level = data.shown.level;
      this.selected = data.shown.selected ?? -1;
      this.until = data.shown.until ?? this.selected;
    }
    if (!same) this.spotlight = null;
    this.veil(data.spotlight);
    this.label(told ? data.shown.colour : added ? added.key : this.colour.value);
    this.write();
    if (told && this.selected >= 0) this.select(this.until, this.selected);
  }

  // Take over what a lesson lights. While it asks which tokens a level drops, what the levels did is hidden.
  veil(spotlight = null) {
    const before = this.spotlight;
    this.spotlight = spotlight;
    const veiled = Boolean(spotlight?.veiled);
    this.root.querySelector(".routing").classList.toggle("veiled", veiled);
    if (!veiled) this.text.marked = null;
    else if (!before?.veiled) this.text.marked = new Set(spotlight.marked);
    this.nameText();
  }

  nameText() {
    const { labels } = this.data;
    this.text.element.setAttribute("aria-label", this.text.marked ? labels.textMarking : labels.text);
  }

  // Light what is pointed at in the lesson's text, or else what the stop of the lesson names.
  shine() {
    const { data, text } = this;
    const lit = this.pointed ? { tokens: [], ...this.pointed } : (this.spotlight ?? { term: "", tokens: [] });
    const parts = litParts(lit.term);
    for (const name of PARTS) (name === "lane" ? this.lane.frame : name === "map" ? this.map.frame : this[name]).classList.toggle("lit", parts.includes(name));
    text.lit = text.marked ? [] : litTokens(data, this.level, lit);
    const { first, last } = data.levels[this.level - 1] ?? { first: 0, last: -1 };
    this.map.lit = { tokens: text.lit, first, last };
    this.drawMarks(-1);
  }

  // Mark tokens as ones that the learner would drop.
  markTokens(tokens) {
    this.text.marked = toggled(this.text.marked, tokens, new Set(this.spotlight.among));
    this.text.paint(this.level, this.tokenChannel);
    this.mark();
    const marked = { id: this.data.id, tokens: [...this.text.marked] };
    this.later("marked", MARKING, () => this.send?.("marked", marked));
  }

  // What is shown, as the page says it.
  get shown() {
    const orNull = (token) => (token < 0 ? null : token);
    return { level: this.level, selected: orNull(this.selected), until: orNull(this.until), colour: this.colour.value };
  }

  // Labels, in the language of the page, and the choice of colours, with the one to begin with.
  label(colour) {
    const { labels, channels, levels } = this.data;
    this.token.style.setProperty("--lines", Math.min(levels.length, LEVELS) + 2);
    for (const element of this.root.querySelectorAll("[data-label]")) {
      const label = labels[element.dataset.label];
      if (element.tagName === "BUTTON") element.setAttribute("aria-label", (element.title = label));
      else element.textContent = label;
    }
    this.search.placeholder = labels.search;
    this.search.setAttribute("aria-label", labels.search);
    this.nameText();
    this.map.cells.setAttribute("aria-label", labels.map);
    this.lane.points.setAttribute("aria-label", labels.lane);
    this.levels.setAttribute("aria-label", labels.levels);
    this.legend.setAttribute("aria-label", labels.legend);
    this.colour.replaceChildren(...channels.map((channel) => new Option(channel.label, channel.key)));
    this.colour.value = this.data.channel(colour).key;
  }

  write() {
    this.text.setText(this.data, this.visible.checked);
    this.paint();
    this.find();
  }

  // The channel that colours text and lane: they have no rows for blocks.
  get tokenChannel() {
    const channel = this.data.channel(this.colour.value);
    return channel.rows === "blocks" ? this.data.channels[0] : channel;
  }

  paint() {
    const channel = this.data.channel(this.colour.value);
    this.drawControls(channel);
    this.text.paint(this.level, this.tokenChannel);
    this.map.paint(channel);
    const { labels, levels } = this.data;
    const notes = [
      levels.some(({ skipped }) => skipped === "merged") && labels.mapMerged,
      levels.some(({ skipped }) => skipped === "light") && labels.mapLight,
      this.data.edited.includes(1) && labels.mapEdited,
    ];
    this.title.textContent = (channel.key === "kept" ? labels.mapTitleKept : labels.mapTitle)
      .replace("{blocks}", this.data.blocks.length).replace("{tokens}", this.data.tokens.toLocaleString()).replace("{colour}", channel.label) + notes.filter(Boolean).join("");
    this.mark();
    this.report();
  }

  // What a picture is called: the level, and what colours it.
  get caption() {
    const { data } = this;
    const title = data.levels.length ? `${data.levels[this.level - 1].title} · ` : "";
    return title + data.channel(this.colour.value).label;
  }

  // Save text and map as a picture, where the browser saves what is downloaded.
  async save(kind) {
    const blob = await picture(this, kind);
    if (!blob) return (this.token.textContent = this.data.labels.pictureTooLarge);
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = `routing.${kind}`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  drawLane() {
    const { data, tokenChannel: channel } = this;
    const empty = !data.levels.length && channel.rows === "levels";
    this.lane.frame.hidden = this.laneTitle.hidden = empty;
    if (empty) return;
    this.lane.draw(data, this.level, channel, this.map);
    const { name, threshold } = data.levels[this.level - 1] ?? { name: "", threshold: null };
    const line = channel.key === "score" && threshold !== null ? data.labels.laneThreshold.replace("{threshold}", short(threshold)) : "";
    const level = channel.rows === "levels" ? data.labels.laneLevel.replace("{level}", name) : "";
    const squeezed = channel.key === "kept" ? "" : data.labels.laneSqueezed; // which is 0 or 1
    const title = data.word("laneTitle", this.level).replace("{colour}", channel.label).replace("{squeezed}", squeezed);
    this.laneTitle.textContent = title + line + level;
    this.lane.drawCursor(this.selected, -1, this.tie(-1));
  }

  drawControls(channel) {
    const { data } = this;
    const { labels } = data;
    this.colour.title = channel.help;
    this.levels.replaceChildren();
    let group = null; // of the places where one light/heavy block routes
    data.levels.forEach(({ level, title, group: name }) => {
        if (group?.name !== name) {
          group = { name, element: name ? document.createElement("span") : this.levels };
          if (name) {
            group.element.className = "block";
            group.element.append(name);
            this.levels.append(group.element);
          }
        }
        const button = document.createElement("button");
        button.type = "button";
        button.setAttribute("role", "radio");
        button.setAttribute("aria-checked", String(level === this.level));
        button.tabIndex = level === this.level ? 0 : -1;
        button.textContent = title;
        button.title = data.word("levelHelp", level);
        if (name) button.setAttribute("aria-label", `${name} · ${title}`);
        const choose = (other) => {
          this.level = other;
          this.paint();
          this.levels.querySelectorAll("button")[other - 1].focus();
        };
        button.addEventListener("click", () => choose(level));
        button.addEventListener("keydown", (event) => {
          const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
          if (!step) return;
          event.preventDefault();
          choose(1 + ((level - 1 + step + data.levels.length) % data.levels.length));
        });
        group.element.append(button);
    });
    if (!data.levels.length) {
      this.legend.textContent = labels.dense;
      return;
    }
    const kept = document.createElement("li");
    kept.title = channel.help;
    const plain = channel.key === "kept"; // all of the highest fifth
    kept.append(plain ? `${data.word("keptState", this.level)} ` : `${data.word("kept", this.level)} (${channel.label}) `);
    for (let bin = plain ? BINS - 1 : 0; bin < BINS; bin++) {
      const swatch = document.createElement("i");
      swatch.style.backgroundColor = `rgb(${BLUE.join(" ")} / ${0.13 + 0.15 * bin})`;
      kept.append(swatch);
    }
    const entries = [kept];
    const { parent, skipped } = data.levels[this.level - 1];
    const others = [["dropped", skipped]]; // a word, and the look that it explains
    if (parent > 0) others.push([data.levels[parent - 1].skipped === "merged" ? "absentMerged" : "absent", "absent"]);
    if (data.edited.includes(1)) others.push(["edited", "edited"]);
    for (const [name, look] of others) {
      const item = document.createElement("li");
      const sample = document.createElement(["dropped", "absent"].includes(look) ? "s" : "u");
      sample.className = look;
      sample.textContent = data.word(name, this.level);
      item.title = data.word(`${name}Help`, this.level);
      item.append(sample);
      entries.push(item);
    }
    this.legend.replaceChildren(...entries);
    if (!CSS.highlights) this.legend.append(labels.oldBrowser);
  }

  // Show what is selected everywhere.
  mark() {
    this.shine();
    this.describe(this.selected, this.map.block);
  }

  drawMarks(hovered) {
    this.text.mark(this.selected, hovered, this.until);
    this.map.drawCursor(this.selected, hovered, this.tie(hovered));
    this.lane.drawCursor(this.selected, hovered, this.tie(hovered));
  }

  // First and last token of the group of the token under the pointer, or of the selected one; null if it has none.
  tie(hovered) {
    return this.data.group(this.level, hovered < 0 && this.selected === this.until ? this.selected : hovered);
  }

  // Marks follow the pointer at once; the numbers, which change the page, once it rests.
  hover(token, block = -1) {
    if (token === this.hovered && block === this.hoveredBlock) return;
    this.hovered = token;
    this.hoveredBlock = block;
    this.drawMarks(token);
    clearTimeout(this.resting);
    this.resting = setTimeout(() => {
      if (token < 0) this.describe(this.selected, this.map.block);
      else this.describe(token, block);
    }, REST);
  }

  drag(event) {
    if (!event.buttons || !this.grip || event.currentTarget !== this.map.cells) return false;
    const tokens = ((event.clientX - this.grip.x) / this.map.cells.clientWidth) * (this.map.to - this.map.from);
    this.grip.moved ||= Math.abs(event.clientX - this.grip.x) > 3;
    if (this.grip.moved) this.map.moveTo(this.grip.from - tokens);
    return this.grip.moved;
  }

  pan(event) {
    const box = this.map.mini.getBoundingClientRect();
    this.map.moveTo(((event.clientX - box.left) / box.width) * this.data.tokens - (this.map.to - this.map.from) / 2);
  }

  // See `walk` of keys.js.
  press(event, onMap) {
    const { tokens, blocks, levels } = this.data;
    if (this.text.marked && this.selected >= 0 && ["Enter", " "].includes(event.key)) {
      event.preventDefault();
      const [first, last] = [Math.min(this.selected, this.until), Math.max(this.selected, this.until)];
      return this.markTokens(Array.from({ length: last + 1 - first }, (_, index) => first + index));
    }
    const most = { tokens, blocks: blocks.length, levels: levels.length };
    const change = walk(event, { selected: this.selected, until: this.until, block: this.map.block, level: this.level }, most, onMap);
    if (!change) return;
    if (event.key !== "Escape") event.preventDefault();
    if (change.search) return this.search.focus();
    if (change.block !== undefined) this.map.block = change.block;
    if (change.level !== undefined) {
      this.level = change.level;
      this.paint();
    } else if (change.token !== undefined) this.select(change.token, change.anchor);
    else this.mark();
  }

  // Select one token, or all from an anchor on.
  select(token, anchor = token) {
    this.selected = token < 0 ? -1 : anchor;
    this.until = token;
    if (token >= 0) {
      this.text.reveal(token);
      this.map.reveal(token);
    }
    this.mark();
    this.report();
  }

  // Tell the page what is shown, once it has stayed so for a moment: for links and for what Python draws.
  report() {
    const shown = { id: this.data.id, told: this.data.shown, ...this.shown };
    const text = JSON.stringify(shown);
    if (text === this.reported) return this.forget("shown");
    this.later("shown", REPORTING, () => {
      this.reported = text;
      this.send?.("shown", shown);
    });
  }

  // Do something once nothing else is to be done in its place for a moment; at once if something else is pressed.
  later(name, wait, act) {
    this.forget(name);
    const tell = () => {
      if ("subllmLeaving" in document.documentElement.dataset) return this.later(name, wait, act); // another page is on its way
      this.forget(name);
      act();
    };
    this.waiting.set(name, { tell, timer: setTimeout(tell, wait) });
  }

  // Do at once what waits; whether there was anything.
  tell() {
    const waiting = [...this.waiting.values()];
    for (const { tell } of waiting) tell();
    return waiting.length > 0;
  }

  forget(name) {
    clearTimeout(this.waiting.get(name)?.timer);
    this.waiting.delete(name);
  }

  find() {
    const query = this.search.value;
    this.found = this.data.find(query);
    const tokens = new Set();
    for (const [first, last] of this.found) for (let token = first; token <= last; token++) tokens.add(token);
    this.text.markFound([...tokens]);
    this.matches.textContent = query ? this.data.labels.matches.replace("{n}", this.found.length.toLocaleString()) : "";
  }

  next(step) {
    if (!this.found.length) return;
    const after = this.found.findIndex(([first]) => first > this.selected);
    const before = this.found.findLastIndex(([first]) => first < this.selected);
    const index = step > 0 ? (after < 0 ? 0 : after) : before < 0 ? this.found.length - 1 : before;
    this.select(this.found[index][0]);
  }

  // What became of a token at a level; of a merging one also whose group it is in, and whose result it got.
  stateInWords(level, token) {
    const { data } = this;
    const { labels } = data;
    const state = data.state(level, token);
    if (state === "absent") return labels[data.skipped(level, token) === "merged" ? "absentMergedState" : "absentState"];
    const name = data.word(state === "kept" ? "keptState" : "droppedState", level);
    if (data.levels[level - 1].skipped !== "merged") return name;
    const { into, from } = data.ties(level, token);
    const place = state === "kept" ? name : into < 0 ? labels.mergedOpen : labels.mergedInto.replace("{into}", into.toLocaleString());
    return from < 0 ? place : `${place}; ${labels.updatedFrom.replace("{from}", from.toLocaleString())}`;
  }

  // The numbers of a token; with a block, also those there.
  describe(token, block = -1) {
    const { data } = this;
    const { labels } = data;
    this.token.replaceChildren();
    const count = this.text.marked ? labels.marks.replace("{n}", this.text.marked.size).replace("{most}", this.spotlight.most) : "";
    if (token < 0) {
      this.token.textContent = count || labels.hint;
      return;
    }
    const term = (key, channel, level = 0) => {
      const element = document.createElement("abbr");
      element.textContent = data.word(key, level);
      element.title = data.channel(channel).help;
      return element;
    };
    const name = document.createElement("b");
    const piece = data.piece(token);
    name.textContent = JSON.stringify(piece.length > 60 ? `${piece.slice(0, 60)}…` : piece);
    this.token.append(`${labels.tokenNumber} ${token.toLocaleString()} `, name, ` (id ${data.ids[token]})`);
    if (count) return this.token.append(`${this.text.marked.has(token) ? `, ${labels.marked}` : ""}\n${count}`);
    if (data.surprisal && !Number.isNaN(data.surprisal[token])) {
      this.token.append(", ", term("surprise", "surprisal"), ` ${data.surprisal[token].toFixed(2)} nats`);
    }
    data.levels.forEach(({ level, name: levelName, threshold }) => {
      const state = data.state(level, token);
      const at = (key) => data.at(key, level, token);
      this.token.append(`\n${levelName}: ${this.stateInWords(level, token)}${data.isEdited(level, token) ? ` (${labels.edited})` : ""}`);
      if (state === "absent") return;
      if (threshold !== null) {
        const rank = labels.rank.replace("{rank}", data.rank(level, token).toLocaleString()).replace("{n}", data.countReached(level).toLocaleString());
        this.token.append(", ", term("score", "score", level), ` ${at("score").toFixed(3)} (${labels.threshold} ${short(threshold)}, ${rank})`);
      }
      if (state === "kept" && data.levels[level - 1].skipped !== "merged" && !Number.isNaN(at("weight"))) {
        this.token.append(", ", term("weight", "weight", level), ` ${at("weight").toFixed(3)}`);
      }
      if ((state !== "kept" && state !== "merged") || Number.isNaN(at("bypass"))) return;
      this.token.append(", ", term("added", "bypass", level), ` ${(100 * at("bypass")).toFixed(1)}%`);
    });
    if (block < 0) return;
    const look = ["processed", "unchanged", "groupProcessed", "lightProcessed"][data.looks(block)[token]];
    this.token.append(`\n${labels.block} ${block}: ${labels[look]}`);
    if (data.levels.some((each) => each.block === block)) {
      const share = `${(100 * data.work[block * data.tokens + token]).toFixed(0)}%`;
      this.token.append(`, ${labels.work.replace("{share}", share)}`);
    }
    for (const channel of data.channels.filter((c) => c.rows === "blocks")) {
      const value = data.value(channel, block, token);
      if (!Number.isNaN(value)) this.token.append(`, ${channel.label} ${value.toFixed(3)}`);
    }
  }
}
