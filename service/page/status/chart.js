/** Lines over the last minutes, as SVG. */

import { makeSvg } from "../dom.js";

const WIDTH = 300;
const HEIGHT = 72;

/**
 * Draws series of the same length into an SVG element.
 * @param {SVGElement} svg is filled anew.
 * @param {Array<Array<number|null>>} series values, the newest last; null where there is none.
 * @param {number} length how many values fill the width.
 * @param {number} least the least value that the height stands for.
 */
export function drawLines(svg, series, length, least) {
  svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
  svg.setAttribute("preserveAspectRatio", "none");
  const top = Math.max(least, ...series.flat().filter((value) => value !== null)) * 1.08;
  svg.replaceChildren(
    ...series.flatMap((values, number) => {
      const points = values.map((value, index) => {
        const x = WIDTH - ((values.length - 1 - index) * WIDTH) / (length - 1);
        return value === null ? null : [x.toFixed(1), (HEIGHT - (HEIGHT * value) / top).toFixed(1)];
      });
      const path = makeSvg("path", { class: `series-${number}`, d: pathThrough(points), "vector-effect": "non-scaling-stroke" });
      return number ? [path] : [makeSvg("path", { class: "area", d: areaUnder(points) }), path];
    }),
  );
}

function pathThrough(points) {
  return points.map((point, index) => (point ? `${index && points[index - 1] ? "L" : "M"}${point.join(" ")}` : "")).join("");
}

function areaUnder(points) {
  const known = points.filter(Boolean);
  if (!known.length) return "";
  return `M${known[0][0]} ${HEIGHT}${known.map((point) => `L${point.join(" ")}`).join("")}L${known.at(-1)[0]} ${HEIGHT}Z`;
}
