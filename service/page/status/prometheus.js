/** Prometheus' text format -> numbers. */

const SAMPLE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)/;
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;

/** The samples of an exposition by name: lists of `{labels, value}`. */
export function parseMetrics(text) {
  const samples = new Map();
  for (const line of text.split("\n")) {
    const found = line[0] === "#" ? null : SAMPLE.exec(line);
    if (!found) continue;
    const labels = Object.fromEntries([...(found[2] ?? "").matchAll(LABEL)].map(([, name, value]) => [name, value]));
    if (!samples.has(found[1])) samples.set(found[1], []);
    samples.get(found[1]).push({ labels, value: Number(found[3].replace("Inf", "Infinity")) });
  }
  return samples;
}

/** The sum of the samples of a name, or of those whose labels `fits` accepts; 0 without one. */
export function sum(samples, name, fits = () => true) {
  return (samples.get(name) ?? []).reduce((total, { labels, value }) => total + (fits(labels) ? value : 0), 0);
}

/** The cumulative counts of a histogram over all its other labels: `[upper bound, count]`, ascending. */
export function buckets(samples, name) {
  const counts = new Map();
  for (const { labels, value } of samples.get(`${name}_bucket`) ?? []) {
    const bound = labels.le === "+Inf" ? Infinity : Number(labels.le);
    counts.set(bound, (counts.get(bound) ?? 0) + value);
  }
  return [...counts].sort(([first], [second]) => first - second);
}

/**
 * The quantile of what a histogram has counted between two scrapes, interpolated as Prometheus does it.
 * @returns {number|null} null if nothing was counted.
 */
export function quantile(share, before, after) {
  const earlier = new Map(before);
  const counts = after.map(([bound, count]) => [bound, count - (earlier.get(bound) ?? 0)]);
  const total = counts.at(-1)?.[1] ?? 0;
  if (total <= 0) return null;
  const rank = share * total;
  const at = counts.findIndex(([, count]) => count >= rank);
  const [lower, below] = at ? counts[at - 1] : [0, 0];
  const [upper, count] = counts[at];
  if (upper === Infinity) return lower;
  return lower + ((upper - lower) * (rank - below)) / (count - below || 1);
}
