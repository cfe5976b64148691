/** Which patches carry a class or a similarity: POST /explain. */

import { imageForm, request } from "../api.js";
import { bytesOf } from "../images/library.js";

const SEED = 7;

/**
 * Has a score explained.
 * @param {Array<Object>} items one image of the library for `target=class`, two for `target=similarity`.
 * @param {Object} parameters of the route, as `target` and `label`.
 * @param {Object} options `signal` and `onWait` as of `request`.
 * @returns {Promise<{picture: Blob, score: number, scale: number, label: string}>} red patches raise the score, blue ones
 *     lower it, and `scale` is the share that has the full colour.
 */
export async function explain(items, parameters, options) {
  const files = await Promise.all(items.map(async (item) => ({ blob: await bytesOf(item), name: item.name })));
  const query = new URLSearchParams({ seed: SEED, ...parameters });
  const headers = { accept: "image/png" };
  const response = await request(`explain?${query}`, { ...options, method: "POST", body: imageForm(files), headers });
  return {
    picture: await response.blob(),
    score: Number(response.headers.get("x-mae-score")),
    scale: Number(response.headers.get("x-mae-scale")),
    label: parameters.label ?? response.headers.get("x-mae-label") ?? "",
  };
}
