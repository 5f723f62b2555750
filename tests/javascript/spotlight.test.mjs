// What a lesson lights, and what a learner marks.

import assert from "node:assert/strict";
import { test } from "node:test";

import { litParts, litTokens, toggled } from "../../analysis/figures/routing_view/spotlight.js";

const data = { tokens: 5, levels: [{}], state: (_, token) => ["kept", "dropped", "absent", "merged", "kept"][token] };

test("a term lights the tokens in its state, and others those that are named", () => {
  assert.deepEqual(litTokens(data, 1, { term: "kept", tokens: [2] }), [0, 4]);
  assert.deepEqual(litTokens(data, 1, { term: "dropped", tokens: [] }), [1, 3]);
  assert.deepEqual(litTokens(data, 1, { term: "score", tokens: [2, 3] }), [2, 3]);
  assert.deepEqual(litTokens({ tokens: 5, levels: [] }, 1, { term: "kept", tokens: [] }), []);
});

test("a term lights the part of the view that shows it", () => {
  assert.deepEqual(["score", "threshold", "level", "block", "numbers", "kept", "constructor"].map(litParts), [
    ["lane"], ["lane"], ["levels"], ["map"], ["token"], [], [],
  ]);
});

test("marks are set together, taken away together, and only where that is possible", () => {
  const among = new Set([0, 1, 2]);
  assert.deepEqual([...toggled(new Set([1]), [0, 1, 7], among)], [1, 0]);
  assert.deepEqual([...toggled(new Set([0, 1]), [0, 1, 7], among)], []);
  assert.deepEqual([...toggled(new Set([2]), [7], among)], [2]);
});
