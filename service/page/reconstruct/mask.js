/** Masks as flags, Uint8Array [N], row-major: 1 is removed, 0 is visible; and as text for the URL. */

/** How many patches a mask removes. */
export function countRemoved(mask) {
  return mask.reduce((sum, flag) => sum + flag, 0);
}

/** The opposite mask. */
export function invert(mask) {
  return mask.map((flag) => 1 - flag);
}

/** The indices of the removed patches, ascending. */
export function removedIndices(mask) {
  return [...mask.keys()].filter((index) => mask[index]);
}

/** Whether two masks are the same. */
export function equal(first, second) {
  return first.length === second.length && first.every((flag, index) => flag === second[index]);
}

/** The indices of a rectangle of patches between two corners, both included. */
export function rectangle(first, second, columns) {
  const [top, bottom] = sorted(Math.floor(first / columns), Math.floor(second / columns));
  const [left, right] = sorted(first % columns, second % columns);
  const indices = [];
  for (let row = top; row <= bottom; row++) {
    for (let column = left; column <= right; column++) indices.push(row * columns + column);
  }
  return indices;
}

/** The indices that a square brush of `size` patches covers around `centre`. */
export function brush(centre, size, rows, columns) {
  const before = Math.floor((size - 1) / 2);
  const row = Math.floor(centre / columns);
  const column = centre % columns;
  const last = (start, limit) => Math.min(start + size - 1, limit - 1);
  const top = Math.max(row - before, 0);
  const left = Math.max(column - before, 0);
  return rectangle(top * columns + left, last(row - before, rows) * columns + last(column - before, columns), columns);
}

/** The patches on the straight line between two patches. */
export function line(first, second, columns) {
  const from = [Math.floor(first / columns), first % columns];
  const to = [Math.floor(second / columns), second % columns];
  const steps = Math.max(Math.abs(to[0] - from[0]), Math.abs(to[1] - from[1]), 1);
  return Array.from({ length: steps + 1 }, (_, step) => {
    const [row, column] = [0, 1].map((axis) => Math.round(from[axis] + ((to[axis] - from[axis]) * step) / steps));
    return row * columns + column;
  });
}

/** A mask as text: eight flags a byte, the first one in the highest bit, in base64url. */
export function maskToText(mask) {
  const bytes = new Uint8Array(Math.ceil(mask.length / 8));
  mask.forEach((flag, index) => {
    bytes[index >> 3] |= flag << (7 - (index & 7));
  });
  return btoa(String.fromCharCode(...bytes)).replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "");
}

/** The mask that `maskToText` wrote, or null if `text` is none of `length` flags. */
export function maskFromText(text, length) {
  let bytes;
  try {
    bytes = Uint8Array.from(atob(text.replaceAll("-", "+").replaceAll("_", "/")), (letter) => letter.charCodeAt(0));
  } catch {
    return null;
  }
  if (bytes.length !== Math.ceil(length / 8)) return null;
  return Uint8Array.from({ length }, (_, index) => (bytes[index >> 3] >> (7 - (index & 7))) & 1);
}

function sorted(first, second) {
  return first < second ? [first, second] : [second, first];
}
