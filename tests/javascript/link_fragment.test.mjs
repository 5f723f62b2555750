// What is put after the # of an address, and when nothing is.

import assert from "node:assert/strict";
import { test } from "node:test";

import { changed } from "../../app/components/link_fragment/view.js";

const address = (search, hash) => ({ pathname: "/debug", search, hash });

test("the text stands after the # of the address of a long prompt", () => {
  assert.equal(changed(address("?v=2&long=1", ""), "p=abc"), "/debug?v=2&long=1#p=abc");
  assert.equal(changed(address("?long=1", "#p=old"), "p=abc"), "/debug?long=1#p=abc");
});

test("an address that has it already is left alone, and so is that of another run or page", () => {
  assert.equal(changed(address("?long=1", "#p=abc"), "p=abc"), null);
  assert.equal(changed(address("?v=2&prompt=x", ""), "p=abc"), null);
  assert.equal(changed(address("", ""), "p=abc"), null);
});
