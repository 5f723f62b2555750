// What a lesson lights up, and what it hides while it asks: terms in words become tokens and parts of the view. No DOM.

const PART_OF = new Map([["score", "lane"], ["threshold", "lane"], ["level", "levels"], ["block", "map"], ["numbers", "token"]]);
const MOST = 2000; // tokens that are lit at once

// Names of the elements that a term lights.
export function litParts(term) {
  return PART_OF.has(term) ? [PART_OF.get(term)] : [];
}

// The tokens that are lit at a level: those that are named, and those in the state that the term names.
export function litTokens(data, level, { term, tokens }) {
  const states = term === "kept" ? ["kept"] : term === "dropped" ? ["dropped", "merged", "light"] : [];
  if (!states.length || !data.levels.length) return [...tokens];
  const lit = [];
  for (let token = 0; token < data.tokens && lit.length < MOST; token++) {
    if (states.includes(data.state(level, token))) lit.push(token);
  }
  return lit;
}

// The marks after some tokens were chosen: all of them marked, or taken away if they were. Only some can be marked.
export function toggled(marked, tokens, among) {
  const possible = tokens.filter((token) => among.has(token));
  const next = new Set(marked);
  const clear = possible.every((token) => next.has(token));
  for (const token of possible) {
    if (clear) next.delete(token);
    else next.add(token);
  }
  return next;
}
