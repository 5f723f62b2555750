// A click on a link to another page waits until what was entered just before has reached the page. Without that, a tap
// asks for the other page first and then, with the text, for this one again; or the server merges both requests, and the
// text is lost. The page is asked to answer, and the link is followed when it does. A link that is replaced while it is
// pressed, as all are when another language is chosen, is followed, too; the browser does not count that as a click.

const SENDING = 100; // milliseconds that a field may take to send its text once it is left
const MOST = 3000; // milliseconds that a link waits for an answer
const LEAVING = 10_000; // milliseconds after which a page that has not changed is taken to stay
const LOOKING = 20; // milliseconds between two looks

let entered = false; // something since the last answer
let held = null; // the click that waits: a link, and the number of the question
let following = false; // a link that has waited
let pressed = null; // the link under a mouse button that is down
let asked = 0;
let looking; // timer of a page that is being left
let ask;

// Whether a click opens another page of the app in this tab.
export function opensPage(link, event, location) {
  if (!link || link.target || link.hasAttribute("download") || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return false;
  return link.origin === location.origin && link.pathname !== location.pathname;
}

// Say for views that another page is on its way: what they send until it is there would ask for this one again.
function leave() {
  const { dataset } = document.documentElement;
  const from = location.pathname;
  const end = performance.now() + LEAVING;
  dataset.subllmLeaving = "";
  clearInterval(looking);
  looking = setInterval(() => {
    if (location.pathname === from && performance.now() < end) return;
    clearInterval(looking);
    delete dataset.subllmLeaving;
  }, LOOKING);
}

function enter(event) {
  if (event.target.matches("input, textarea")) entered = true;
}

function press(event) {
  pressed = event.button === 0 ? event.target.closest("a[href]") : null;
}

function release(event) {
  const before = pressed;
  pressed = null;
  const link = event.target.closest?.("a[href]"); // a button may come up outside of the window
  if (opensPage(link, event, location) && before && !before.isConnected && link.href === before.href) link.click();
}

function click(event) {
  const link = event.target.closest("a[href]");
  if (!opensPage(link, event, location)) return;
  if (following) return leave();
  const settled = dispatchEvent(new CustomEvent("subllm-leave", { cancelable: true })); // views send what they hold back
  if (settled && !entered) return leave();
  event.preventDefault();
  event.stopImmediatePropagation();
  if (document.activeElement?.matches("input, textarea")) document.activeElement.blur(); // then it sends its text
  const number = ++asked;
  held = { link, number };
  setTimeout(() => ask("asked", number), SENDING);
  setTimeout(() => follow(number), MOST);
}

function follow(number) {
  if (!held || held.number !== number) return;
  const { link } = held;
  held = null;
  entered = false;
  const there = link.isConnected ? link : document.querySelector(`a[href="${CSS.escape(link.getAttribute("href"))}"]`);
  following = true;
  there?.click();
  following = false;
}

export default function ({ data, setStateValue }) {
  ask = setStateValue;
  addEventListener("input", enter, true);
  addEventListener("mousedown", press, true);
  addEventListener("mouseup", release, true);
  addEventListener("click", click, true);
  follow(data.answered);
  return () => {
    removeEventListener("input", enter, true);
    removeEventListener("mousedown", press, true);
    removeEventListener("mouseup", release, true);
    removeEventListener("click", click, true);
  };
}
