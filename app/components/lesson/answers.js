// A field for the learner's name, and a button that saves the answers under it. The name stays in the browser.

import { csv, stem } from "./csv.js";

const names = new WeakMap();

export default function ({ data, parentElement }) {
  const { columns, rows, words } = data;
  const form = document.createElement("form");
  form.className = "answers";
  const label = document.createElement("label");
  const field = document.createElement("input");
  const button = document.createElement("button");
  Object.assign(field, { type: "text", maxLength: 80, autocomplete: "name", value: names.get(parentElement) ?? "" });
  field.addEventListener("input", () => names.set(parentElement, field.value));
  button.textContent = words.download;
  label.append(`${words.name} `, field);
  form.append(label, button);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([csv(columns, rows, field.value)], { type: "text/csv;charset=utf-8" }));
    link.download = [words.file, stem(field.value)].filter(Boolean).join("-") + ".csv";
    link.click();
    URL.revokeObjectURL(link.href);
  });
  parentElement.querySelector("form")?.remove();
  parentElement.append(form);
}
