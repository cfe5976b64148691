/** The API key: asked for when the server wants one, and kept in memory alone. */

import { byId } from "./dom.js";

let key = "";
let asking = null;

/** The headers that carry the key; none without one. */
export function keyHeaders() {
  return key ? { "x-api-key": key } : {};
}

/** The key in use, or "". */
export function currentKey() {
  return key;
}

/**
 * Asks the user for a key, once for all requests that need one.
 * @returns {Promise<boolean>} whether a key was given.
 */
export function askForKey() {
  asking ??= openDialog().finally(() => {
    asking = null;
  });
  return asking;
}

function openDialog() {
  const dialog = byId("key-dialog");
  const field = byId("key-field");
  byId("key-refused").hidden = !key;
  field.value = "";
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener(
      "close",
      () => {
        const given = dialog.returnValue === "use" && field.value !== "";
        if (given) key = field.value;
        field.value = "";
        resolve(given);
      },
      { once: true },
    );
  });
}
