/** Vectors of images: POST /embed, in portions, each image once. */

import { imageForm, RequestError, requestJson } from "../api.js";
import { bytesOf } from "../images/library.js";

const PORTION_IMAGES = 16;
const PORTION_BYTES = 8_000_000;

/** The vectors of one model. */
export class Vectors {
  /** Whether the vectors are whitened by what the weights hold; otherwise they are as the encoder gives them. */
  whitened;
  #known = new WeakMap();
  #maxImages;

  /** @param {Object} info the answer of /info. */
  constructor(info) {
    this.whitened = info.engine.whitening.includes("mean");
    this.#maxImages = Math.min(info.limits.max_images, PORTION_IMAGES);
  }

  /** The vector of an image, a Float32Array; undefined before it is embedded, or if it cannot be. */
  vectorOf(item) {
    return this.#known.get(item)?.vector;
  }

  /** Why an image has no vector, or undefined. */
  errorOf(item) {
    return this.#known.get(item)?.error;
  }

  /**
   * Embeds the images that are not known yet.
   * @param {Array<Object>} items images of the library.
   * @param {Object} options `signal` and `onWait` as of `request`; `onProgress(done, count)` after each portion.
   */
  async embed(items, options) {
    const unknown = items.filter((item) => !this.#known.has(item));
    let done = 0;
    for (const portion of await portions(unknown, this.#maxImages)) {
      await this.#embedPortion(portion, options);
      done += portion.length;
      options.onProgress(done, unknown.length);
    }
  }

  async #embedPortion(items, options) {
    const query = new URLSearchParams({ on_error: "skip", encoding: "base64", whiten: this.whitened });
    const body = imageForm(items.map((item) => ({ blob: item.blob, name: item.name })));
    try {
      const answer = await requestJson(`embed?${query}`, { method: "POST", body, signal: options.signal, onWait: options.onWait });
      for (const { image, message } of answer.errors) this.#known.set(items[image], { error: message });
      answer.embeddings.forEach((text, index) => {
        if (text !== null) this.#known.set(items[index], { vector: floatsFromBase64(text) });
      });
    } catch (error) {
      if (!(error instanceof RequestError)) throw error;
      // None of them can be embedded, and the answer tells the reason of one alone; or they are too much together.
      if (items.length === 1) this.#known.set(items[0], { error: error.message });
      else for (const item of items) await this.#embedPortion([item], options);
    }
  }
}

/** `items` in portions of at most `count` images and about PORTION_BYTES bytes. */
async function portions(items, count) {
  const result = [];
  let bytes = Infinity;
  for (const item of items) {
    const { size } = await bytesOf(item);
    if (bytes + size > PORTION_BYTES || result.at(-1).length === count) {
      result.push([]);
      bytes = 0;
    }
    result.at(-1).push(item);
    bytes += size;
  }
  return result;
}

function floatsFromBase64(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  return new Float32Array(bytes.buffer);
}
