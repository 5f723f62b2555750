// A learner's answers as a file.

import assert from "node:assert/strict";
import { test } from "node:test";

import { csv, stem } from "../../app/components/lesson/csv.js";

test("cells with commas, quotes and line breaks are quoted, and formulas are not formulas", () => {
  const text = csv(["learner", "a"], [['say "hi", or\nnot'], ["=1+1"], ["@x"], ["-1"], ["1-1"]], " 李明 ");
  assert.equal(text, '\ufefflearner,a\r\n李明,"say ""hi"", or\nnot"\r\n李明,\'=1+1\r\n李明,\'@x\r\n李明,\'-1\r\n李明,1-1\r\n');
});

test("a name becomes part of a file's name without anything that a path could be", () => {
  assert.equal(stem(" Ada/../Lovelace <x> "), "Ada-Lovelace-x");
  assert.equal(stem("李 明"), "李-明");
  assert.equal(stem("../"), "");
});
