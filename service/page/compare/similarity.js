/** Cosines, neighbours, duplicates and the plane of the two largest principal components. */

const ITERATIONS = 200;

/** `vectors` with their mean subtracted. */
export function centre(vectors) {
  const mean = new Float64Array(vectors[0].length);
  for (const vector of vectors) vector.forEach((value, at) => (mean[at] += value / vectors.length));
  return vectors.map((vector) => vector.map((value, at) => value - mean[at]));
}

/** `vectors` scaled to length 1. */
export function normalize(vectors) {
  return vectors.map((vector) => {
    const length = Math.sqrt(dot(vector, vector)) || 1;
    return vector.map((value) => value / length);
  });
}

/** The dot products of all pairs, as rows. */
export function products(vectors) {
  return vectors.map((first) => Float64Array.from(vectors, (second) => dot(first, second)));
}

/** The `count` nearest others of vector `index`: `{index, cosine}`, the nearest first. */
export function nearest(cosines, index, count) {
  return [...cosines[index]]
    .map((cosine, other) => ({ index: other, cosine }))
    .filter((pair) => pair.index !== index)
    .sort((first, second) => second.cosine - first.cosine)
    .slice(0, count);
}

/** Groups of indices that are connected by cosines of at least `threshold`; only groups of two and more. */
export function duplicates(cosines, threshold) {
  const groups = cosines.map((_, index) => index);
  const root = (index) => (groups[index] === index ? index : root(groups[index]));
  cosines.forEach((row, first) =>
    row.forEach((cosine, second) => {
      if (second > first && cosine >= threshold) groups[root(second)] = root(first);
    }),
  );
  const members = Map.groupBy(groups.keys(), root);
  return [...members.values()].filter((group) => group.length > 1);
}

/**
 * PCA: the coordinates of each vector on the two largest principal components, `[x, y]`.
 *
 * Of n vectors of D numbers, n is the smaller: the components come from the n x n matrix of dot products of the centred
 * vectors, by power iteration.
 */
export function principalPlane(vectors) {
  const gram = products(centre(vectors));
  const axes = [component(gram, 1)];
  for (const row of gram.keys()) {
    for (const column of gram.keys()) gram[row][column] -= axes[0].value * axes[0].vector[row] * axes[0].vector[column];
  }
  axes.push(component(gram, 2));
  return vectors.map((_, index) => axes.map(({ value, vector }) => vector[index] * Math.sqrt(Math.max(value, 0))));
}

/** The largest eigenvalue of a symmetric matrix, and its vector of length 1; `start` makes the first guess. */
function component(matrix, start) {
  let vector = Float64Array.from(matrix, (_, index) => Math.sin(start * (index + 1)));
  let value = 0;
  for (let step = 0; step < ITERATIONS; step++) {
    const next = Float64Array.from(matrix, (row) => dot(row, vector));
    value = Math.sqrt(dot(next, next));
    if (value < 1e-12) return { value: 0, vector: vector.fill(0) };
    vector = next.map((number) => number / value);
  }
  return { value, vector };
}

function dot(first, second) {
  let sum = 0;
  for (let at = 0; at < first.length; at++) sum += first[at] * second[at];
  return sum;
}
