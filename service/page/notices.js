/** Messages above the tabs: what went wrong, and with which image. */

import { byId, make } from "./dom.js";

const shown = new Map();

/** Shows `text` under `name` in place of the message before it; without `text` it takes the message away. */
export function notify(name, text = "", kind = "error") {
  const before = shown.get(name);
  if (before?.text === text && before?.kind === kind) return;
  before?.element.remove();
  shown.delete(name);
  if (!text) return;
  const close = make("button", { type: "button", class: "plain", "aria-label": "Dismiss this message" }, "×");
  const element = make("div", { class: `notice ${kind}`, "data-notice": name }, make("p", {}, text), close);
  close.addEventListener("click", () => notify(name));
  shown.set(name, { element, text, kind });
  byId(kind === "error" ? "alerts" : "hints").append(element);
}
