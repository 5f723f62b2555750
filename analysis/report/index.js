// The list of several reports.

import { inLanguages } from "./languages.js";

inLanguages(JSON.parse(document.querySelector("script.words").textContent), () => {});
document.documentElement.dataset.ready = "true";
