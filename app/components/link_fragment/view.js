// Reads the part of the address after the #, or keeps a text there.

let latest; // text that was asked for

// The address with a text after the #; null if it is there already, or the address is no longer that of a long prompt.
export function changed(location, fragment) {
  if (new URLSearchParams(location.search).get("long") !== "1" || location.hash === `#${fragment}`) return null;
  return `${location.pathname}${location.search}#${fragment}`;
}

function put() {
  const address = changed(window.location, latest);
  if (address) window.history.replaceState(window.history.state, "", address);
}

export default function ({ data, setStateValue }) {
  if (data.read) {
    setStateValue("fragment", window.location.hash.slice(1));
    return undefined;
  }
  latest = data.fragment;
  put();
  if (!window.navigation) return undefined; // older browsers do not say when the address changes
  window.navigation.addEventListener("currententrychange", put); // once, however often this is called
  return () => window.navigation.removeEventListener("currententrychange", put);
}
