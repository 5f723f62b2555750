// Which clicks open another page of the app in this tab.

import assert from "node:assert/strict";
import { test } from "node:test";

import { opensPage } from "../../app/components/page_links/view.js";

const here = { origin: "http://a", pathname: "/debug" };
const link = (pathname, more = {}) => ({ origin: "http://a", pathname, target: "", hasAttribute: () => false, ...more });

test("a link to another page of the app does", () => {
  assert.equal(opensPage(link("/"), {}, here), true);
});

test("no link, this page, another site, another tab and a download do not", () => {
  assert.equal(opensPage(null, {}, here), false);
  assert.equal(opensPage(link("/debug"), {}, here), false);
  assert.equal(opensPage(link("/", { origin: "http://b" }), {}, here), false);
  assert.equal(opensPage(link("/", { target: "_blank" }), {}, here), false);
  assert.equal(opensPage(link("/", { hasAttribute: (name) => name === "download" }), {}, here), false);
  for (const key of ["altKey", "ctrlKey", "metaKey", "shiftKey"]) assert.equal(opensPage(link("/"), { [key]: true }, here), false);
});
