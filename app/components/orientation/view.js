// A button that shows a person around the page: a ring around one thing after another, and a few words beside each.
// Nothing is remembered, and nothing starts by itself. Escape ends it, and the focus goes back to the button.

import { place, selector } from "./steps.js";

const tours = new WeakMap();

export default function ({ data, parentElement }) {
  tours.get(parentElement)?.end();
  const start = document.createElement("button");
  start.type = "button";
  start.className = "start";
  start.textContent = data.words.start;
  const tour = new Tour(data, start);
  tours.set(parentElement, tour);
  start.addEventListener("click", () => tour.go(0));
  parentElement.querySelector(".start")?.remove();
  parentElement.append(start);
  return () => tour.end();
}

class Tour {
  constructor({ steps, words, css }, start) {
    Object.assign(this, { steps, words, start });
    this.root = document.createElement("div"); // over the page, with a style of its own
    const shadow = this.root.attachShadow({ mode: "open" });
    const style = document.createElement("style");
    style.textContent = css;
    this.ring = make("div", "ring");
    this.bubble = make("div", "bubble");
    this.bubble.setAttribute("role", "dialog");
    this.bubble.setAttribute("aria-label", words.start);
    this.bubble.tabIndex = -1;
    this.count = make("p", "count");
    this.text = make("p", "text");
    this.text.setAttribute("aria-live", "polite");
    const buttons = make("div", "buttons");
    this.back = this.button(words.back, () => this.go(this.index - 1));
    this.next = this.button(words.next, () => (this.index + 1 < this.steps.length ? this.go(this.index + 1) : this.end()));
    const close = this.button(words.close, () => this.end());
    buttons.append(this.back, this.next, close);
    this.bubble.append(this.count, this.text, buttons);
    this.bubble.addEventListener("keydown", (event) => {
      event.stopPropagation(); // the page has keys of its own
      if (event.key === "Escape") this.end();
    });
    shadow.append(style, this.ring, this.bubble);
  }

  button(label, act) {
    const element = make("button", "");
    element.type = "button";
    element.textContent = label;
    element.addEventListener("click", act);
    return element;
  }

  get target() {
    const element = document.querySelector(selector(this.steps[this.index]));
    return element?.getClientRects().length ? element : null;
  }

  go(index) {
    this.index = index;
    const { words } = this;
    const colours = getComputedStyle(this.start);
    this.root.style.setProperty("--back", colours.getPropertyValue("--st-background-color") || "#fff");
    this.root.style.setProperty("--text", colours.color);
    this.count.textContent = words.count.replace("{n}", index + 1).replace("{of}", this.steps.length);
    this.text.textContent = this.steps[index].text;
    this.back.disabled = index === 0;
    this.next.textContent = index + 1 < this.steps.length ? words.next : words.done;
    document.body.append(this.root);
    this.target?.scrollIntoView({ block: "center" });
    (index && this.root.shadowRoot.activeElement ? this.root.shadowRoot.activeElement : this.next).focus();
    cancelAnimationFrame(this.frame);
    this.follow();
  }

  // Stay beside the target, also while the page scrolls or is drawn again.
  follow() {
    const box = this.target?.getBoundingClientRect() ?? null;
    this.ring.hidden = !box;
    if (box) Object.assign(this.ring.style, { left: `${box.left - 6}px`, top: `${box.top - 6}px`, width: `${box.width + 12}px`, height: `${box.height + 12}px` });
    const at = place(box, this.bubble.getBoundingClientRect(), { width: innerWidth, height: innerHeight });
    Object.assign(this.bubble.style, { left: `${at.left}px`, top: `${at.top}px` });
    this.frame = requestAnimationFrame(() => this.follow());
  }

  end() {
    cancelAnimationFrame(this.frame);
    if (!this.root.isConnected) return;
    this.root.remove();
    this.start.focus();
  }
}

function make(tag, name) {
  const element = document.createElement(tag);
  if (name) element.className = name;
  return element;
}
