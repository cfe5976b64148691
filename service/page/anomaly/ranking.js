/** All images by their score, the most anomalous first. */

import { byId, make } from "../dom.js";
import { portions } from "../images/portions.js";
import { postSkipping } from "../images/skipping.js";
import { notify } from "../notices.js";
import { describeWait } from "../picture.js";

/** A list that is made on demand, since it costs as much as all its images. */
export class Ranking {
  #context;
  #query;
  #controller = new AbortController();

  /**
   * @param {Object} context with `info` and `library`.
   * @param {function(): URLSearchParams} query tells the parameters of POST /anomaly that decide about scores.
   */
  constructor(context, query) {
    this.#context = context;
    this.#query = query;
    byId("rank").addEventListener("click", () => this.#rank());
    context.library.addEventListener("change", () => this.clear());
    context.addEventListener("info", () => this.clear());
  }

  /** Takes the list away: it is of other images or other parameters. */
  clear() {
    this.cancel();
    byId("ranking").replaceChildren();
    notify("ranking");
  }

  /** Stops the scoring that is under way. */
  cancel() {
    this.#controller.abort();
    byId("ranking-progress").textContent = "";
  }

  async #rank() {
    this.clear();
    const { signal } = (this.#controller = new AbortController());
    const items = [...this.#context.library.items];
    const query = this.#query();
    query.set("on_error", "skip");
    const onWait = (seconds) => notify("queue", describeWait(seconds), "hint");
    const scored = [];
    const failed = [];
    try {
      for (const portion of await portions(items, this.#context.info.limits.max_images)) {
        byId("ranking-progress").textContent = `${scored.length + failed.length} of ${items.length} images scored`;
        const { outcomes } = await postSkipping(`anomaly?${query}`, portion, "anomalies", { signal, onWait });
        outcomes.forEach(({ value, error }, index) => {
          if (error) failed.push(`${portion[index].name}: ${error.replace(/^image \d+ /, "it ")}`);
          else scored.push({ item: portion[index], ...value });
        });
      }
    } catch (error) {
      if (!signal.aborted) notify("ranking", error.message);
      return;
    } finally {
      if (!signal.aborted) byId("ranking-progress").textContent = "";
    }
    if (signal.aborted) return;
    notify("ranking", failed.length ? `Left out: ${failed.join("; ")}` : "");
    scored.sort((first, second) => second.score - first.score);
    byId("ranking").replaceChildren(...scored.map((entry) => this.#entry(entry)));
  }

  #entry({ item, score, flagged }) {
    const picture = item.thumbnail ? make("img", { src: item.thumbnail, alt: "" }) : make("span", { class: "blank" }, "?");
    const verdict = { true: ", anomalous", false: ", normal" }[flagged] ?? "";
    const button = make(
      "button",
      { type: "button", class: flagged ? "flagged" : null, click: () => this.#context.library.select(item.id) },
      picture,
      make("span", { class: "label" }, item.name),
      make("b", {}, `${score.toPrecision(3)}${verdict}`),
    );
    return make("li", {}, button);
  }
}
