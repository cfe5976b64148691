/** Which patches are removed: drawn by a seed, or painted by hand; and as parameters of the URL's fragment. */

import { maskFromText, maskToText } from "./mask.js";

export const STRATEGIES = ["random", "block", "grid"];
const MAX_SEED = 2n ** 64n - 1n;
const NEW_SEEDS = 1_000_000;

/** The choice with which the page starts. */
export const FIRST_CHOICE = { kind: "drawn", ratio: 0.75, strategy: "random", seed: "7" };

/** How many of `count` patches a ratio removes; the same arithmetic as the server's. */
export function removedByRatio(ratio, count) {
  return count - Math.trunc(count * (1 - ratio));
}

/** A new seed, short enough to be told to somebody. */
export function newSeed() {
  const [number] = crypto.getRandomValues(new Uint32Array(1));
  return String(number % NEW_SEEDS);
}

/** `text` as a seed in its shortest form, or null if it is none (0 to 2^64 - 1). */
export function parseSeed(text) {
  if (!/^\d{1,20}$/.test(text.trim())) return null;
  const seed = BigInt(text);
  return seed <= MAX_SEED ? String(seed) : null;
}

/** The parameters of the fragment for `choice`. */
export function choiceToParameters(choice) {
  if (choice.kind === "painted") return { mask: maskToText(choice.mask) };
  return { ratio: choice.ratio, strategy: choice.strategy, seed: choice.seed };
}

/**
 * The choice that parameters of the fragment describe. What is missing or wrong is taken from `fallback`.
 * @param {URLSearchParams} parameters of the fragment.
 * @param {Object} fallback a drawn choice.
 * @param {number} count N, the number of patches.
 */
export function choiceFromParameters(parameters, fallback, count) {
  const mask = maskFromText(parameters.get("mask") ?? "", count);
  if (mask) return { kind: "painted", mask };
  const ratio = Number(parameters.get("ratio"));
  const removed = removedByRatio(ratio, count);
  return {
    kind: "drawn",
    ratio: removed > 0 && removed < count ? ratio : fallback.ratio,
    strategy: STRATEGIES.includes(parameters.get("strategy")) ? parameters.get("strategy") : fallback.strategy,
    seed: parseSeed(parameters.get("seed") ?? "") ?? fallback.seed,
  };
}
