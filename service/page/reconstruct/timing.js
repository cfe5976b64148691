/** The time of an answer by stage, from its Server-Timing header, as a bar. */

import { make } from "../dom.js";

const STAGES = ["read", "decode", "queue", "infer", "render"];

/** Stages and their milliseconds; what passed outside the server's own stages is `other`. */
export function stagesOf(header, total) {
  const named = Object.fromEntries(
    header.split(",").map((part) => {
      const [name, ...fields] = part.split(";").map((text) => text.trim());
      return [name, Number(fields.find((field) => field.startsWith("dur="))?.slice(4) ?? 0)];
    }),
  );
  const stages = STAGES.filter((name) => named[name]).map((name) => [name, named[name]]);
  const rest = total - stages.reduce((sum, [, milliseconds]) => sum + milliseconds, 0);
  return [...stages, ["other", Math.max(rest, 0)]];
}

/** Draws the stages as a bar with its parts named below it. */
export function drawStages(bar, list, stages) {
  const total = stages.reduce((sum, [, milliseconds]) => sum + milliseconds, 0) || 1;
  const part = ([name, milliseconds]) => {
    const element = make("span", { class: `stage ${name}` });
    element.style.setProperty("--share", milliseconds / total);
    return element;
  };
  bar.replaceChildren(...stages.map(part));
  bar.setAttribute("aria-label", `time by stage: ${stages.map(([name, ms]) => `${name} ${ms.toFixed(1)} ms`).join(", ")}`);
  list.replaceChildren(
    ...stages.map(([name, milliseconds]) =>
      make("li", {}, make("span", { class: `swatch ${name}` }), `${name} `, make("b", {}, milliseconds.toFixed(1))),
    ),
  );
}
