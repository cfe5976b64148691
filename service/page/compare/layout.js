/** Places for pictures on a map: near the points that they stand for, and not over each other. */

const ROUNDS = 200;

/**
 * @param {Array<Array<number>>} points `[x, y]` in any units.
 * @param {number} width of the map in pixels.
 * @param {number} height of the map in pixels.
 * @param {number} side of a picture in pixels, with the gap around it.
 * @returns {Array<Array<number>>} the centres of the pictures in pixels. Pictures overlap only if the map is too small.
 */
export function place(points, width, height, side) {
  const places = points.map(([x, y]) => [x, y]);
  scaleAxis(places, 0, side / 2, width - side / 2);
  scaleAxis(places, 1, side / 2, height - side / 2);
  for (let round = 0; round < ROUNDS && pushApart(places, side); round++) {
    for (const centre of places) {
      centre[0] = clamp(centre[0], side / 2, width - side / 2);
      centre[1] = clamp(centre[1], side / 2, height - side / 2);
    }
  }
  return places;
}

/** Moves overlapping pictures apart along the axis on which they overlap less; tells whether any did. */
function pushApart(places, side) {
  let moved = false;
  for (let first = 0; first < places.length; first++) {
    for (let second = first + 1; second < places.length; second++) {
      const between = [0, 1].map((axis) => places[second][axis] - places[first][axis]);
      const overlap = between.map((distance) => side - Math.abs(distance));
      if (overlap[0] <= 0.5 || overlap[1] <= 0.5) continue;
      const axis = overlap[0] < overlap[1] ? 0 : 1;
      const shift = ((between[axis] < 0 ? -1 : 1) * overlap[axis]) / 2;
      places[first][axis] -= shift;
      places[second][axis] += shift;
      moved = true;
    }
  }
  return moved;
}

function scaleAxis(places, axis, low, high) {
  const values = places.map((point) => point[axis]);
  const least = Math.min(...values);
  const range = Math.max(...values) - least;
  for (const point of places) point[axis] = range ? low + ((point[axis] - least) / range) * (high - low) : (low + high) / 2;
}

function clamp(value, low, high) {
  return Math.min(Math.max(value, low), high);
}
