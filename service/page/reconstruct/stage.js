/** The result: the five views, the large picture with its wipe, loss and times. */

import { byId, download, make } from "../dom.js";
import { drawRamp } from "./heat.js";
import { describeView, drawView, VIEWS } from "./pictures.js";
import { drawStages } from "./timing.js";
import { Wipe } from "./wipe.js";

const SHORT = {
  original: "Original",
  masked: "Masked",
  reconstruction: "Reconstruction",
  composite: "Composite",
  error: "Error",
};
const MEANINGS = {
  original: "what the model was given, before patches were removed",
  masked: "all that the model sees",
  reconstruction: "the prediction for every patch",
  composite: "what is visible, and the prediction for the rest",
  error: "where the prediction is wrong",
};

/** Shows results. Dispatches "view" when the user chooses another view. */
export class Stage extends EventTarget {
  view = "composite";
  #result = null;
  #canvases = {};
  #buttons = {};

  constructor() {
    super();
    for (const view of VIEWS) {
      this.#canvases[view] = make("canvas", { width: 224, height: 224, "aria-hidden": "true" });
      this.#buttons[view] = make(
        "button",
        { type: "button", class: "view", "data-view": view, click: () => this.choose(view) },
        this.#canvases[view],
        make("span", {}, SHORT[view]),
      );
    }
    byId("views").replaceChildren(...VIEWS.map((view) => make("li", {}, this.#buttons[view])));
    new Wipe(byId("stage"), byId("wipe"));
    drawRamp(byId("ramp"));
    byId("download").addEventListener("click", () => this.#download());
    this.choose(this.view);
  }

  /** Shows `view` large. */
  choose(view) {
    if (!VIEWS.includes(view)) return;
    this.view = view;
    for (const name of VIEWS) this.#buttons[name].setAttribute("aria-pressed", name === view);
    byId("stage-title").textContent = SHORT[view];
    byId("stage-meaning").textContent = MEANINGS[view];
    byId("after-label").textContent = SHORT[view].toLowerCase();
    byId("legend").hidden = view !== "error";
    byId("stage").classList.toggle("plain", view === "original");
    if (this.#result) this.#drawLarge();
    this.dispatchEvent(new Event("view"));
  }

  /** Draws a result of `Session.reconstruct`. */
  show(result) {
    this.#result?.prediction.close();
    this.#result = result;
    byId("stage").classList.remove("empty");
    for (const view of VIEWS) drawView(this.#canvases[view], view, result);
    this.#drawLarge();
    byId("loss").textContent = result.loss.toFixed(3);
    byId("download").disabled = false;
    const total = result.stages.reduce((sum, [, milliseconds]) => sum + milliseconds, 0);
    byId("total").textContent = `${total.toFixed(0)} ms`;
    drawStages(byId("stages-bar"), byId("stages"), result.stages);
  }

  /** Takes all pictures away: there is none of this image. */
  clear() {
    this.#result = null;
    byId("stage").classList.add("empty");
    for (const canvas of [...Object.values(this.#canvases), byId("before"), byId("after")]) {
      canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
    }
    byId("after").setAttribute("aria-label", "no picture");
    for (const view of VIEWS) this.#buttons[view].setAttribute("aria-label", `${SHORT[view]}: no picture`);
    byId("loss").textContent = byId("total").textContent = "–";
    byId("download").disabled = true;
    drawStages(byId("stages-bar"), byId("stages"), []);
  }

  #drawLarge() {
    copy(this.#canvases.original, byId("before"));
    copy(this.#canvases[this.view], byId("after"));
    byId("after").setAttribute("aria-label", describeView(this.view, this.#result));
    for (const view of VIEWS) {
      this.#buttons[view].setAttribute("aria-label", `${SHORT[view]}: ${describeView(view, this.#result)}`);
    }
  }

  #download() {
    const stem = this.#result.name.replace(/\.[^.]*$/, "");
    this.#canvases[this.view].toBlob((blob) => download(blob, `${stem}-${this.view}.png`));
  }
}

function copy(from, to) {
  if (to.width !== from.width) to.width = to.height = from.width;
  to.getContext("2d").drawImage(from, 0, 0);
}
