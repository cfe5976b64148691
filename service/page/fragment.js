/** The URL's fragment: the tab and its state, as in `#reconstruct?image=chelsea&ratio=0.75&strategy=random&seed=7`. */

/** The tab and the parameters that the fragment names. */
export function readFragment() {
  const [tab, query = ""] = location.hash.slice(1).split("?");
  return { tab, parameters: new URLSearchParams(query) };
}

/** Browsers refuse more than about three changes of the address a second. */
const PAUSE_MS = 400;
let waiting = "";
let timer = 0;

/** Writes the tab and its parameters into the fragment, soon, without a new entry in the history of the browser. */
export function writeFragment(tab, parameters = new URLSearchParams()) {
  const query = parameters.toString();
  waiting = `#${tab}${query ? `?${query}` : ""}`;
  timer ||= setTimeout(flushFragment, PAUSE_MS);
}

/** Writes at once what `writeFragment` was given last. */
export function flushFragment() {
  clearTimeout(timer);
  timer = 0;
  if (waiting) history.replaceState(null, "", waiting);
  waiting = "";
}
