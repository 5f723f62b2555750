// Tells the page that shows the app in a frame what the app's address is, so that its own address can be a link.

// What a host such as Hugging Face puts behind its own address; it has no place for the page, which becomes a field.
export function address(search, hash, page) {
  const query = new URLSearchParams(search);
  if (page) query.set("page", page);
  else query.delete("page");
  return { queryString: query.toString(), hash };
}

export default function ({ data }) {
  if (window.parent === window) return undefined;
  let told = "";
  const tell = () => {
    const message = address(window.location.search, window.location.hash, data.page);
    if (JSON.stringify(message) === told) return;
    told = JSON.stringify(message);
    window.parent.postMessage(message, data.origin);
  };
  tell();
  if (window.navigation) {
    window.navigation.addEventListener("currententrychange", tell);
    return () => window.navigation.removeEventListener("currententrychange", tell);
  }
  const timer = window.setInterval(tell, 1000); // browsers that do not say when the address changes
  return () => window.clearInterval(timer);
}
