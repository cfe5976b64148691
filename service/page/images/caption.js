/** The names of files under small pictures. */

import { make } from "../dom.js";

const KEPT_END = 4;

/** A name without its suffix, shortened before its end: photographs of one camera differ there. */
export function caption(name) {
  const stem = name.replace(/(.)\.[^.]*$/, "$1");
  const [start, end] = [stem.slice(0, -KEPT_END), stem.slice(-KEPT_END)];
  return make("span", { class: "name" }, make("span", { class: "start" }, start), make("span", {}, end));
}
