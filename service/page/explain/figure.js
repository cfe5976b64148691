/** A figure that explains a score on demand. */

import { make } from "../dom.js";
import { notify } from "../notices.js";
import { describeError, describeWait, hidePicture, showPicture } from "../picture.js";
import { explain } from "./explain.js";

/** A picture of shares with its caption; it stays hidden until something is explained. */
export class ExplanationFigure {
  #image = make("img", { alt: "", hidden: true });
  #caption = make("figcaption", { class: "help" });
  #figure;
  #controller = new AbortController();

  /** @param {HTMLElement} parent gets the figure. */
  constructor(parent) {
    this.#figure = make("figure", { class: "explanation", hidden: true }, this.#image, this.#caption);
    parent.append(this.#figure);
  }

  /** Takes the figure away. */
  clear() {
    this.#controller.abort();
    this.#figure.hidden = true;
    hidePicture(this.#image);
  }

  /**
   * Shows which patches carry a score.
   * @param {Array<Object>} items as of `explain`.
   * @param {Object} parameters as of `explain`.
   * @param {function({score: number, label: string}): string} describe names the score, as "cosine 0.41".
   */
  async show(items, parameters, describe) {
    this.clear();
    const { signal } = (this.#controller = new AbortController());
    this.#figure.hidden = false;
    this.#caption.textContent = "Random halves of the patches are left out …";
    try {
      const onWait = (seconds) => notify("queue", describeWait(seconds), "hint");
      const explanation = await explain(items, parameters, { signal, onWait });
      if (signal.aborted) return;
      const scale = explanation.scale.toPrecision(2);
      const text = `${describe(explanation)}: red patches raise it, blue ones lower it, at most by ${scale}.`;
      this.#caption.textContent = text;
      showPicture(this.#image, explanation.picture, `${items[0].name}, ${text}`);
      notify("explain");
    } catch (error) {
      if (signal.aborted) return;
      this.clear();
      notify("explain", describeError(error, items[0]));
    }
  }
}
