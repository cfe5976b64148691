/** Many images in several requests. */

import { bytesOf } from "./library.js";

const PORTION_IMAGES = 16;
const PORTION_BYTES = 8_000_000;

/**
 * Images in portions for one request each: at most 16 images and, but for larger single files, 8 MB.
 * @param {Array<Object>} items images of the library; afterwards their bytes are there.
 * @param {number} maxImages the server's own limit.
 */
export async function portions(items, maxImages) {
  const result = [];
  let bytes = Infinity;
  for (const item of items) {
    const { size } = await bytesOf(item);
    if (bytes + size > PORTION_BYTES || result.at(-1).length === Math.min(maxImages, PORTION_IMAGES)) {
      result.push([]);
      bytes = 0;
    }
    result.at(-1).push(item);
    bytes += size;
  }
  return result;
}
