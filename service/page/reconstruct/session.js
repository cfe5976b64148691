/** What the page knows of one image: its bytes, the square of it that the model sees, and how to have it reconstructed. */

import { request } from "../api.js";
import { bytesOf } from "../images/library.js";
import { countRemoved } from "./mask.js";
import { queryOf } from "./query.js";
import { stagesOf } from "./timing.js";

/** Above this size the square is sent in place of the file, so that the file is sent and decoded only once. */
const LARGE_BYTES = 150_000;

/** One image, reconstructed again and again with other patches removed. */
export class Session {
  /** The square that the model sees, a bitmap [S, S]; null before the first answer. */
  original = null;
  #item;
  #square = null;
  #keepsSquare;

  /**
   * @param {Object} item an image of the library.
   * @param {Object} preprocessing of the model, as /info has it. Only where it crops nothing from a square is the square
   *     the same picture to the model as the file.
   */
  constructor(item, preprocessing) {
    this.#item = item;
    this.#keepsSquare = preprocessing.crop_fraction === 1;
  }

  /** The name of the image. */
  get name() {
    return this.#item.name;
  }

  /**
   * Has the image reconstructed.
   * @param {Object} choice `{kind: "drawn", ratio, strategy, seed}` or `{kind: "painted", mask}`.
   * @param {AbortSignal} signal ends the request.
   * @param {function(number)} onWait is told how many seconds the server asks to wait.
   * @returns {Promise<Object>} `name`, `original`, `prediction`, `mask`, `error`, `grid`, `loss`, `removed`, `stages`.
   * @throws {RequestError} the server refuses the image or the mask.
   */
  async reconstruct(choice, signal, onWait) {
    const started = performance.now();
    const query = queryOf(choice);
    query.set("view", this.original ? "reconstruction" : "panel");
    const response = await request(`reconstruct?${query}`, {
      method: "POST",
      headers: { accept: "application/json", "content-type": "application/octet-stream" },
      body: this.#square ?? (await bytesOf(this.#item)),
      signal,
      onWait,
    });
    const answer = await response.json();
    const [{ loss, error, png }] = answer.reconstructions;
    const bitmap = await createImageBitmap(new Blob([bytesFromBase64(png)], { type: "image/png" }));
    const prediction = this.original ? bitmap : await this.#split(bitmap);
    const mask = Uint8Array.from(answer.mask);
    const stages = stagesOf(response.headers.get("server-timing") ?? "", performance.now() - started);
    const removed = countRemoved(mask);
    return { name: this.name, original: this.original, prediction, mask, error, grid: answer.grid, loss, removed, stages };
  }

  /** Takes the original out of a panel (original, masked, reconstruction, composite) and returns the reconstruction. */
  async #split(panel) {
    const side = panel.height;
    const step = (panel.width - side) / 3;
    const [original, prediction] = await Promise.all([
      createImageBitmap(panel, 0, 0, side, side),
      createImageBitmap(panel, 2 * step, 0, side, side),
    ]);
    panel.close();
    this.original = original;
    const { size } = await bytesOf(this.#item);
    if (this.#keepsSquare && size > LARGE_BYTES) this.#square = await encode(original);
    return prediction;
  }
}

async function encode(bitmap) {
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  canvas.getContext("2d").drawImage(bitmap, 0, 0);
  return canvas.convertToBlob({ type: "image/png" });
}

function bytesFromBase64(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const letters = atob(text);
  const bytes = new Uint8Array(letters.length);
  for (let at = 0; at < letters.length; at++) bytes[at] = letters.charCodeAt(at);
  return bytes;
}
