/** Places for pictures on a map: near the points that they stand for, and not over each other. */

const ANGLES = 16;
const RINGS = 120;

/**
 * @param {Array<Array<number>>} points `[x, y]` in any units.
 * @param {number} width of the map in pixels.
 * @param {number} height of the map in pixels.
 * @param {number} side of a picture in pixels, with the gap around it.
 * @returns {Array<Array<number>>} the centres of the pictures in pixels. Pictures overlap only if the map is too small.
 */
export function place(points, width, height, side) {
  const xs = scale(points.map(([x]) => x), side / 2, width - side / 2);
  const ys = scale(points.map(([, y]) => y), side / 2, height - side / 2);
  const places = [];
  for (const index of points.keys()) places.push(nearestFree([xs[index], ys[index]], places, width, height, side));
  return places;
}

/** The free place nearest to `wanted`, searched on rings around it; `wanted` itself if there is none. */
function nearestFree(wanted, taken, width, height, side) {
  for (let ring = 0; ring < RINGS; ring++) {
    const radius = (ring * side) / 4;
    for (let turn = 0; turn < (ring ? ANGLES : 1); turn++) {
      const angle = (2 * Math.PI * turn) / ANGLES;
      const x = clamp(wanted[0] + radius * Math.cos(angle), side / 2, width - side / 2);
      const y = clamp(wanted[1] + radius * Math.sin(angle), side / 2, height - side / 2);
      const isFree = taken.every((other) => Math.max(Math.abs(x - other[0]), Math.abs(y - other[1])) >= side);
      if (isFree) return [x, y];
    }
  }
  return wanted;
}

/** `values` scaled so that they fill the range from `low` to `high`. */
function scale(values, low, high) {
  const least = Math.min(...values);
  const range = Math.max(...values) - least;
  return values.map((value) => (range ? low + ((value - least) / range) * (high - low) : (low + high) / 2));
}

function clamp(value, low, high) {
  return Math.min(Math.max(value, low), high);
}
