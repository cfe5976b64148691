/** Requests of several images of which one may be broken. */

import { imageForm, RequestError, requestJson } from "../api.js";

/**
 * Sends images with `on_error=skip` and tells the outcome of each.
 * @param {string} path of the route with its query, which has `on_error=skip`.
 * @param {Array<Object>} items images of the library, whose bytes are there (`portions`).
 * @param {string} key of the list in the answer that has one entry per image.
 * @param {Object} options `signal` and `onWait` as of `request`.
 * @returns {Promise<{answer: Object|null, outcomes: Array<{value: *, error: string}>}>} for each image its value, or why it
 *     was left out; `answer` is null if all were.
 */
export async function postSkipping(path, items, key, options) {
  const body = imageForm(items.map((item) => ({ blob: item.blob, name: item.name })));
  try {
    const answer = await requestJson(path, { method: "POST", body, ...options });
    const outcomes = answer[key].map((value) => ({ value }));
    for (const { image, message } of answer.errors) outcomes[image] = { error: message };
    return { answer, outcomes };
  } catch (error) {
    if (!(error instanceof RequestError)) throw error;
    if (items.length === 1) return { answer: null, outcomes: [{ error: error.message }] };
    // All are broken, and the answer tells the reason of one alone; or they are too much for one request.
    const single = [];
    for (const item of items) single.push(await postSkipping(path, [item], key, options));
    const answer = single.find((part) => part.answer)?.answer ?? null;
    return { answer, outcomes: single.flatMap((part) => part.outcomes) };
  }
}
