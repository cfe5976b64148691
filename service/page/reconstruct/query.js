/** The query of POST /reconstruct for a choice of patches, and the command that sends the same request. */

import { currentKey } from "../key.js";
import { removedIndices } from "./mask.js";

/** The parameters that describe `choice`. */
export function queryOf(choice) {
  if (choice.kind === "painted") return new URLSearchParams({ patches: removedIndices(choice.mask).join(",") });
  return new URLSearchParams({ mask_ratio: choice.ratio, strategy: choice.strategy, seed: choice.seed });
}

/** The `curl` command that gives the PNG which the page shows. */
export function curlCommand(choice, view, name) {
  const query = queryOf(choice);
  query.set("view", view === "original" ? "panel" : view);
  const address = new URL("reconstruct", document.baseURI).href;
  const key = currentKey() ? ' -H "X-API-Key: $MAE_API_KEY"' : "";
  const stem = name.replace(/\.[^.]*$/, "");
  const quote = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  const url = quote(`${address}?${query.toString().replaceAll("%2C", ",")}`);
  // Between double quotes, commas and semicolons belong to the name.
  const file = /[,;"\\]/.test(name) ? `"${name.replaceAll(/["\\]/g, "\\$&")}"` : name;
  return `curl -F ${quote(`image=@${file}`)}${key} ${url} -o ${quote(`${stem}-${query.get("view")}.png`)}`;
}
