/** Vectors of images: POST /embed, in portions, each image once. */

import { portions } from "../images/portions.js";
import { postSkipping } from "../images/skipping.js";

/** The vectors of one model. */
export class Vectors {
  /** Whether the vectors are whitened by what the weights hold; otherwise they are as the encoder gives them. */
  whitened;
  #known = new WeakMap();
  #maxImages;

  /** @param {Object} info the answer of /info. */
  constructor(info) {
    this.whitened = info.engine.whitening.includes("mean");
    this.#maxImages = info.limits.max_images;
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

  async #embedPortion(items, { signal, onWait }) {
    const query = new URLSearchParams({ on_error: "skip", encoding: "base64", whiten: this.whitened });
    const { outcomes } = await postSkipping(`embed?${query}`, items, "embeddings", { signal, onWait });
    outcomes.forEach(({ value, error }, index) => {
      this.#known.set(items[index], error ? { error } : { vector: floatsFromBase64(value) });
    });
  }
}

function floatsFromBase64(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  return new Float32Array(bytes.buffer);
}
