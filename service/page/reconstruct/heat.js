/** Errors as colours, the same as those of the server's `view=error`. */

/** The squared error that is shown in the brightest colour. */
export const ERROR_SCALE = 2;

// Black to pale yellow, each colour brighter than the last, so that they read in grey too (after matplotlib's inferno).
const STOPS = [
  [0, 0, 4],
  [87, 16, 110],
  [188, 55, 84],
  [249, 142, 9],
  [252, 255, 164],
];

/** The colour of a value between 0 and `scale`, as [red, green, blue]. */
export function heat(value, scale = ERROR_SCALE) {
  const position = Math.min(Math.max(value / scale, 0), 1) * (STOPS.length - 1);
  const below = Math.min(Math.floor(position), STOPS.length - 2);
  const share = position - below;
  return STOPS[below].map((channel, index) => Math.round(channel + (STOPS[below + 1][index] - channel) * share));
}

/** Draws the legend's ramp from 0 to the scale into a canvas. */
export function drawRamp(canvas) {
  const context = canvas.getContext("2d");
  for (let x = 0; x < canvas.width; x++) {
    context.fillStyle = `rgb(${heat((x / (canvas.width - 1)) * ERROR_SCALE)})`;
    context.fillRect(x, 0, 1, canvas.height);
  }
}
