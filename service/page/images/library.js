/** The images of this visit: four examples, and what the user adds. Nothing is stored. */

const THUMBNAIL = 128;
const EXAMPLES = ["astronaut", "chelsea", "coffee", "rocket"];

/** Dispatches "change" when images come or go, and "select" when another one is selected. */
export class Library extends EventTarget {
  /** Images as `{id, name, example, thumbnail, blob}`; `thumbnail` is a URL, or null for what this browser cannot read. */
  items = EXAMPLES.map((name) => ({ id: name, name: `${name}.jpg`, example: true, thumbnail: exampleUrl(name), blob: null }));
  /** The selected image. */
  selected = this.items[1];
  #count = 0;

  /** Adds files and selects the first of them. */
  add(files) {
    const added = files.map((file, index) => ({
      id: `file-${this.#count + index}`,
      name: file.name || `pasted-${this.#count + index + 1}.png`,
      example: false,
      thumbnail: undefined,
      blob: file,
    }));
    if (!added.length) return;
    this.#count += added.length;
    this.items = [...this.items, ...added];
    this.dispatchEvent(new CustomEvent("change", { detail: { added } }));
    this.select(added[0].id);
    this.#drawThumbnails(added);
  }

  /** Selects the image with this id, if there is one. */
  select(id) {
    const item = this.items.find((candidate) => candidate.id === id);
    if (!item || item === this.selected) return;
    this.selected = item;
    this.dispatchEvent(new Event("select"));
  }

  /** Removes an image; if it was selected, its neighbour is. */
  remove(id) {
    const at = this.items.findIndex((item) => item.id === id);
    const [item] = this.items.splice(at, 1);
    if (item.thumbnail) URL.revokeObjectURL(item.thumbnail);
    if (item === this.selected) this.select(this.items[Math.max(at - 1, 0)].id);
    this.dispatchEvent(new CustomEvent("change", { detail: { added: [] } }));
  }

  async #drawThumbnails(items) {
    for (const item of items) {
      item.thumbnail = await drawThumbnail(item.blob);
      this.dispatchEvent(new CustomEvent("thumbnail", { detail: item }));
    }
  }
}

/** The bytes of an image as they go to the server. */
export async function bytesOf(item) {
  item.blob ??= await (await fetch(item.thumbnail)).blob();
  return item.blob;
}

function exampleUrl(name) {
  return new URL(`../examples/${name}.jpg`, import.meta.url).href;
}

/** The URL of a small square of an image, or null where this browser cannot read it; the server may still. */
async function drawThumbnail(blob) {
  try {
    const bitmap = await createImageBitmap(blob);
    const side = Math.min(bitmap.width, bitmap.height);
    const canvas = new OffscreenCanvas(THUMBNAIL, THUMBNAIL);
    const left = (bitmap.width - side) / 2;
    const top = (bitmap.height - side) / 2;
    canvas.getContext("2d").drawImage(bitmap, left, top, side, side, 0, 0, THUMBNAIL, THUMBNAIL);
    bitmap.close();
    return URL.createObjectURL(await canvas.convertToBlob());
  } catch {
    return null;
  }
}
