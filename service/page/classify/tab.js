/** The tab Classify: the most probable classes of the selected image, where the weights have a head. */

import { imageForm, requestJson } from "../api.js";
import { announce, byId, make } from "../dom.js";
import { ExplanationFigure } from "../explain/figure.js";
import { readFragment, writeFragment } from "../fragment.js";
import { bytesOf } from "../images/library.js";
import { notify } from "../notices.js";
import { describeError, describeWait } from "../picture.js";

const CLASSES = 8;

/** Fills the panel; see `Tabs`. */
export function open(panel, context) {
  return new ClassifyTab(context);
}

class ClassifyTab {
  #context;
  #isShown = false;
  #controller = new AbortController();
  #explanation = new ExplanationFigure(byId("classes-column"));
  /** The most probable class of the selected image. */
  #first = "";

  constructor(context) {
    this.#context = context;
    byId("explain-class").addEventListener("click", () =>
      this.#explanation.show(
        [context.library.selected],
        { target: "class", label: this.#first },
        ({ score, label }) => `Probability of ${label}, ${(100 * score).toFixed(1)} %`,
      ),
    );
    context.library.addEventListener("select", () => this.#isShown && this.#classify());
    context.addEventListener("info", () => this.#isShown && this.#classify());
    this.#readFragment();
    addEventListener("hashchange", () => this.#readFragment());
  }

  /** The tab is shown. */
  show() {
    this.#isShown = true;
    this.#classify();
  }

  /** Another tab is shown. */
  hide() {
    this.#isShown = false;
    this.#controller.abort();
  }

  #readFragment() {
    const { tab, parameters } = readFragment();
    if (tab === "classify") this.#context.library.select(parameters.get("image"));
  }

  async #classify() {
    const item = this.#context.library.selected;
    writeFragment("classify", new URLSearchParams(item.example ? { image: item.id } : {}));
    this.#controller.abort();
    this.#explanation.clear();
    const controller = (this.#controller = new AbortController());
    byId("classes-image").textContent = item.name;
    try {
      const body = imageForm([{ blob: await bytesOf(item), name: item.name }]);
      const onWait = (seconds) => notify("queue", describeWait(seconds), "hint");
      const options = { method: "POST", body, signal: controller.signal, onWait };
      const answer = await requestJson(`classify?top_k=${CLASSES}`, options);
      notify("classify");
      this.#draw(item, answer.classifications[0].classes);
    } catch (error) {
      if (controller.signal.aborted) return;
      byId("classes").replaceChildren();
      byId("classes-picture").replaceChildren();
      byId("explain-class").hidden = true;
      notify("classify", describeError(error, item));
    }
  }

  #draw(item, classes) {
    this.#first = classes[0].label;
    byId("explain-class").hidden = false;
    const url = URL.createObjectURL(item.blob); // the whole file: thumbnails are small
    const picture = make("img", { src: url, alt: "", load: () => URL.revokeObjectURL(url) });
    byId("classes-picture").replaceChildren(item.thumbnail === null ? "" : picture);
    byId("classes").replaceChildren(
      ...classes.map(({ label, probability }) => {
        const bar = make("span", { class: "bar" });
        bar.style.setProperty("--share", probability);
        return make("li", {}, make("span", { class: "label" }, label), bar, make("b", {}, `${(100 * probability).toFixed(1)} %`));
      }),
    );
    announce(`${item.name}: ${classes[0].label}, ${(100 * classes[0].probability).toFixed(0)} %`);
  }
}
