/** The URL's fragment: the tab and its state, as in `#reconstruct?image=chelsea&ratio=0.75&strategy=random&seed=7`. */

/** The tab and the parameters that the fragment names. */
export function readFragment() {
  const [tab, query = ""] = location.hash.slice(1).split("?");
  return { tab, parameters: new URLSearchParams(query) };
}

/** Writes the tab and its parameters into the fragment, without a new entry in the history of the browser. */
export function writeFragment(tab, parameters = new URLSearchParams()) {
  const query = parameters.toString();
  history.replaceState(null, "", `#${tab}${query ? `?${query}` : ""}`);
}
