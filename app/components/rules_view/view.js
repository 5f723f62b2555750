// Each token of a text with a bar for every rule under it. Texts are text nodes and titles, never markup.

const views = new WeakMap();

export default function (component) {
  const { data, parentElement } = component;
  let view = views.get(parentElement);
  if (!view) {
    view = new RulesView(parentElement);
    views.set(parentElement, view);
  }
  view.show(data);
  return () => view.observer.disconnect();
}

class RulesView {
  constructor(root) {
    this.body = root.querySelector(".body");
    this.legend = root.querySelector(".legend");
    this.observer = new ResizeObserver(() => this.nameLines());
  }

  show(data) {
    this.data = data;
    const { first, pieces, rules, words } = data;
    const states = [words.absent, words.dropped, words.kept, words.absentMerged];
    const used = [2, 1, 0, 3].filter((state) => rules.some((rule) => rule.states.includes(state)));
    this.legend.replaceChildren(...used.map((state) => make("li", "", [make("i", `s${state}`), states[state]])));
    this.tokens = [];
    const children = [];
    pieces.forEach((piece, index) => {
      const token = make("span", "token", [make("span", "piece", [visible(piece)])]);
      for (const rule of rules) token.append(make("i", `s${rule.states[index]}`));
      token.title = [`${first + index} ${piece}`, ...rules.map((rule) => `${rule.name}: ${states[rule.states[index]]}`)].join("\n");
      this.tokens.push(token);
      children.push(token);
      if (piece.includes("\n")) children.push(document.createElement("br"));
    });
    this.body.replaceChildren(...children);
    this.nameLines();
    this.observer.observe(this.body);
  }

  // Write the names of the rules beside every line, wherever the browser broke it.
  nameLines() {
    this.body.querySelectorAll(".names").forEach((names) => names.remove());
    let last = -1;
    for (const token of this.tokens) {
      const top = token.offsetTop;
      if (top <= last) continue;
      last = top;
      const names = make("div", "names", this.data.rules.map((rule) => make("span", "", [rule.name])));
      names.style.top = `${top + token.firstChild.offsetHeight}px`;
      names.setAttribute("aria-hidden", "true");
      this.body.append(names);
    }
  }
}

function make(tag, name, children = []) {
  const element = document.createElement(tag);
  if (name) element.className = name;
  element.append(...children);
  return element;
}

// A token of line breaks alone would have no width.
function visible(piece) {
  return piece.replaceAll("\n", "⏎").replaceAll("\t", "⇥");
}
