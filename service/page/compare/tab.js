/** The tab Compare: all images by similarity, their neighbours and duplicates, and the files for TensorBoard's projector. */

import { announce, byId, download, make } from "../dom.js";
import { ExplanationFigure } from "../explain/figure.js";
import { writeFragment } from "../fragment.js";
import { notify } from "../notices.js";
import { describeWait } from "../picture.js";
import { ImageMap } from "./map.js";
import { projectorFiles } from "./projector.js";
import { IndexSearch } from "./search.js";
import { centre, duplicates, nearest, normalize, principalPlane, products } from "./similarity.js";
import { Vectors } from "./vectors.js";

/** Fills the panel; see `Tabs`. */
export function open(panel, context) {
  return new CompareTab(context);
}

class CompareTab {
  #context;
  #map = new ImageMap();
  #vectors;
  #isShown = false;
  #controller = new AbortController();
  /** The images that have a vector, in the order of the rows of `#cosines`. */
  #items = [];
  #cosines = [];
  #groups = [];
  #lookedAt = 0;
  #explanation = new ExplanationFigure(byId("explain-column"));
  #search;

  constructor(context) {
    this.#context = context;
    this.#vectors = new Vectors(context.info);
    this.#search = new IndexSearch(context);
    context.addEventListener("info", () => {
      this.#vectors = new Vectors(context.info);
      this.#update();
    });
    context.library.addEventListener("change", () => this.#update());
    context.library.addEventListener("thumbnail", () => this.#isShown && this.#draw());
    const lookAtSelected = () => this.#lookAt(this.#items.indexOf(context.library.selected));
    context.library.addEventListener("select", lookAtSelected);
    this.#map.addEventListener("look", ({ detail }) => this.#lookAt(detail));
    this.#map.addEventListener("pick", ({ detail }) => context.library.select(this.#items[detail].id));
    this.#map.addEventListener("leave", lookAtSelected);
    byId("neighbour-count").addEventListener("input", () => this.#lookAt(this.#lookedAt));
    byId("duplicate-threshold").addEventListener("input", () => this.#findDuplicates());
    byId("explain-similarity").addEventListener("click", () => this.#explain());
    byId("export").addEventListener("click", () => this.#export());
  }

  /** The tab is shown. */
  show() {
    this.#isShown = true;
    writeFragment("compare");
    this.#update();
    this.#search.show();
  }

  /** Another tab is shown. */
  hide() {
    this.#isShown = false;
    this.#controller.abort();
    this.#search.hide();
  }

  /** Embeds the images that are new, and draws all. */
  async #update() {
    if (!this.#isShown) return;
    this.#controller.abort();
    const { signal } = (this.#controller = new AbortController());
    const progress = byId("compare-progress");
    const items = [...this.#context.library.items];
    try {
      await this.#vectors.embed(items, {
        signal,
        onProgress: (done, count) => {
          progress.textContent = done < count ? `${done} of ${count} images embedded` : "";
        },
        onWait: (seconds) => notify("queue", describeWait(seconds), "hint"),
      });
    } catch (error) {
      if (!signal.aborted) notify("compare", error.message);
      return;
    } finally {
      progress.textContent = "";
    }
    if (signal.aborted) return;
    this.#tellErrors(items);
    this.#items = items.filter((item) => this.#vectors.vectorOf(item));
    this.#draw();
    announce(`${this.#items.length} images compared`);
  }

  #tellErrors(items) {
    const failed = items.filter((item) => this.#vectors.errorOf(item));
    const reasons = failed.map((item) => `${item.name}: ${this.#vectors.errorOf(item).replace(/^image \d+ /, "it ")}`);
    notify("compare", reasons.length ? `Left out: ${reasons.join("; ")}` : "");
  }

  #draw() {
    byId("compare-none").hidden = this.#items.length > 1;
    byId("compared").hidden = this.#items.length < 2;
    if (this.#items.length < 2) return;
    const vectors = this.#items.map((item) => this.#vectors.vectorOf(item));
    const directions = normalize(this.#vectors.whitened ? vectors : centre(vectors));
    this.#cosines = products(directions);
    const labels = this.#items.map((item, index) => {
      const [{ index: other, cosine }] = nearest(this.#cosines, index, 1);
      return `${item.name}, nearest: ${this.#items[other].name}, cosine ${cosine.toFixed(2)}`;
    });
    this.#map.draw(this.#items, principalPlane(directions), labels);
    byId("vectors-kind").textContent = this.#vectors.whitened
      ? "Cosines of whitened vectors. The map shows the two largest principal components of their directions."
      : "These weights hold no whitening: the cosines are of vectors centred over the images here, and rough for a few.";
    this.#findDuplicates();
    this.#lookAt(Math.max(this.#items.indexOf(this.#context.library.selected), 0));
  }

  #findDuplicates() {
    const threshold = byId("duplicate-threshold").valueAsNumber;
    byId("duplicate-cosine").textContent = threshold.toFixed(2);
    this.#groups = duplicates(this.#cosines, threshold);
    this.#map.markDuplicates(this.#groups);
    const entry = (group, number) =>
      make("li", {}, make("b", {}, `${number + 1}`), ` ${group.map((index) => this.#items[index].name).join(", ")}`);
    const none = make("li", { class: "help" }, "none");
    byId("duplicates").replaceChildren(...(this.#groups.length ? this.#groups.map(entry) : [none]));
  }

  #lookAt(index) {
    if (index < 0 || index >= this.#cosines.length) return;
    if (index !== this.#lookedAt) this.#explanation.clear();
    this.#lookedAt = index;
    const count = byId("neighbour-count").valueAsNumber;
    byId("neighbour-number").textContent = count;
    const neighbours = nearest(this.#cosines, index, count);
    this.#map.connect(index, neighbours);
    byId("neighbours-of").textContent = this.#items[index].name;
    byId("neighbours").replaceChildren(
      ...neighbours.map((pair) => {
        const { name, thumbnail } = this.#items[pair.index];
        const picture = thumbnail ? make("img", { src: thumbnail, alt: "" }) : make("span", { class: "blank" }, "?");
        return make("li", {}, picture, make("span", { class: "label" }, name), make("b", {}, pair.cosine.toFixed(3)));
      }),
    );
  }

  #explain() {
    const [{ index }] = nearest(this.#cosines, this.#lookedAt, 1);
    const pair = [this.#items[this.#lookedAt], this.#items[index]];
    const describe = ({ score }) => `Cosine of ${pair[0].name} with ${pair[1].name}, ${score.toFixed(2)}`;
    this.#explanation.show(pair, { target: "similarity" }, describe);
  }

  async #export() {
    const images = this.#items.map((item, index) => ({
      name: item.name,
      thumbnail: item.thumbnail,
      vector: this.#vectors.vectorOf(item),
      group: this.#groups.findIndex((group) => group.includes(index)) + 1,
    }));
    const { model } = this.#context.info;
    download(await projectorFiles(model, images), "projector.zip");
  }
}
