// Paragraphs of a lesson. Terms are buttons: what they name lights up in the view of the prompt while they are pointed at
// or have the focus, and stays lit after a click until the next one. Texts are text nodes, never markup.

const states = new WeakMap();

export default function ({ data, parentElement }) {
  const state = states.get(parentElement) ?? { kept: null };
  states.set(parentElement, state);
  const light = (term) => window.dispatchEvent(new CustomEvent("subllm-light", { detail: term ? { term } : null }));
  const body = document.createElement("div");
  body.className = "lesson";
  for (const { look, pieces } of data) {
    const paragraph = document.createElement("p");
    paragraph.className = look;
    for (const { text, term } of pieces) {
      if (!term) {
        paragraph.append(text);
        continue;
      }
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = text;
      button.setAttribute("aria-pressed", String(state.kept === term));
      for (const event of ["pointerenter", "focus"]) button.addEventListener(event, () => light(term));
      for (const event of ["pointerleave", "blur"]) button.addEventListener(event, () => light(state.kept));
      button.addEventListener("click", () => {
        state.kept = state.kept === term ? null : term;
        for (const other of body.querySelectorAll("button")) other.setAttribute("aria-pressed", String(other === button && state.kept === term));
        light(state.kept);
      });
      paragraph.append(button);
    }
    body.append(paragraph);
  }
  parentElement.querySelector(".lesson")?.remove();
  parentElement.append(body);
  return () => {
    state.kept = null;
    light(null);
  };
}
