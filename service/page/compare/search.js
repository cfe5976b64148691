/** The nearest images of the server's index to the selected image: POST /search. */

import { imageForm, requestJson } from "../api.js";
import { announce, byId, make } from "../dom.js";
import { caption } from "../images/caption.js";
import { bytesOf } from "../images/library.js";
import { notify } from "../notices.js";
import { describeError, describeWait } from "../picture.js";

/** Shows what is found, where the server has an index. */
export class IndexSearch {
  #context;
  #isShown = false;
  #controller = new AbortController();

  /** @param {Object} context with `info` and `library`. */
  constructor(context) {
    this.#context = context;
    context.addEventListener("info", () => this.#search());
    context.library.addEventListener("select", () => this.#search());
    byId("found-count").addEventListener("change", () => this.#search());
    byId("found-count").addEventListener("input", ({ target }) => (byId("found-number").textContent = target.value));
  }

  /** The tab is shown. */
  show() {
    this.#isShown = true;
    this.#search();
  }

  /** Another tab is shown. */
  hide() {
    this.#isShown = false;
    this.#controller.abort();
  }

  async #search() {
    this.#controller.abort();
    const { index } = this.#context.info;
    byId("index-search").hidden = index === null;
    if (index === null || !this.#isShown) return;
    const { signal } = (this.#controller = new AbortController());
    const item = this.#context.library.selected;
    describeIndex(index);
    byId("found-of").textContent = item.name;
    byId("found").setAttribute("aria-busy", true);
    try {
      const query = new URLSearchParams({ k: byId("found-count").value, thumbnails: true });
      const body = imageForm([{ blob: await bytesOf(item), name: item.name }]);
      const onWait = (seconds) => notify("queue", describeWait(seconds), "hint");
      const { searches } = await requestJson(`search?${query}`, { method: "POST", body, signal, onWait });
      this.#draw(searches[0].neighbours);
      notify("search");
    } catch (error) {
      if (signal.aborted) return;
      this.#draw([]);
      notify("search", describeError(error, item));
    } finally {
      if (!signal.aborted) byId("found").removeAttribute("aria-busy");
    }
  }

  #draw(neighbours) {
    const list = byId("found");
    list.classList.toggle("without-pictures", neighbours.every(({ thumbnail }) => !thumbnail));
    list.replaceChildren(...neighbours.map(entry));
    announce(`${neighbours.length} images found`);
  }
}

function describeIndex({ name, rows, exact, recall }) {
  byId("index-name").textContent = name;
  const found = exact ? "" : `, of the nearest ones ${Math.round(100 * recall)} % are found`;
  byId("index-size").textContent = `${rows.toLocaleString("en")} ${rows === 1 ? "image" : "images"}${found}`;
}

function entry({ name, similarity, thumbnail }) {
  const picture = thumbnail ? make("img", { src: thumbnail, alt: "" }) : make("span", { class: "blank", "aria-hidden": "true" });
  const bar = make("span", { class: "bar", "aria-hidden": "true" });
  bar.style.setProperty("--share", `${100 * Math.min(Math.max(similarity, 0), 1)}%`);
  return make("li", { title: name }, picture, caption(name), make("b", {}, similarity.toFixed(3)), bar);
}
