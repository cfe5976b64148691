/** The five views of a reconstruction, drawn in the browser from the original, the prediction, the mask and the errors. */

import { heat } from "./heat.js";

export const VIEWS = ["original", "masked", "reconstruction", "composite", "error"];
const GREY = "rgb(128, 128, 128)";

/**
 * Draws one view.
 * @param {HTMLCanvasElement} canvas gets the size of the original.
 * @param {string} view one of `VIEWS`.
 * @param {Object} result `original` and `prediction`, bitmaps [S, S]; `mask` [N]; `error` [N]; `grid` [rows, columns].
 */
export function drawView(canvas, view, result) {
  const { original, prediction, mask, error, grid } = result;
  const size = original.width;
  if (canvas.width !== size || canvas.height !== size) canvas.width = canvas.height = size;
  const context = canvas.getContext("2d", { willReadFrequently: view === "error" });
  context.drawImage(view === "reconstruction" ? prediction : original, 0, 0);
  if (view === "original" || view === "reconstruction") return;
  if (view === "error") dim(context, size);
  const side = size / grid[1];
  for (let index = 0; index < mask.length; index++) {
    if (!mask[index]) continue;
    const left = (index % grid[1]) * side;
    const top = Math.floor(index / grid[1]) * side;
    if (view === "composite") {
      context.drawImage(prediction, left, top, side, side, left, top, side, side);
    } else {
      context.fillStyle = view === "masked" ? GREY : `rgb(${heat(error[index])})`;
      context.fillRect(left, top, side, side);
    }
  }
}

/** What a view shows, in words for those who do not see it. */
export function describeView(view, { name, mask, loss, removed }) {
  const share = `${Math.round((100 * removed) / mask.length)} % removed`;
  return {
    original: `${name} as the model sees it`,
    masked: `${name} with ${share}`,
    reconstruction: `reconstruction of ${name}, ${share}, loss ${loss.toFixed(3)}`,
    composite: `visible patches of ${name} and the prediction for the rest, ${share}, loss ${loss.toFixed(3)}`,
    error: `squared error of each removed patch of ${name}, ${share}, loss ${loss.toFixed(3)}`,
  }[view];
}

/** Half as bright and without colour, as in the server's `view=error`. */
function dim(context, size) {
  const pixels = context.getImageData(0, 0, size, size);
  const { data } = pixels;
  for (let at = 0; at < data.length; at += 4) {
    data[at] = data[at + 1] = data[at + 2] = ((data[at] + data[at + 1] + data[at + 2]) / 3) * 0.5;
  }
  context.putImageData(pixels, 0, 0);
}
