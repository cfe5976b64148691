/** The map of images: a button for each, lines to its neighbours. */

import { byId, make, makeSvg } from "../dom.js";
import { place } from "./layout.js";

const GAP = 12;

/**
 * Shows pictures at their places. Dispatches "look" with the index of the picture that is hovered or has the focus, "pick"
 * with that of one that is clicked, and "leave".
 */
export class ImageMap extends EventTarget {
  #element = byId("map");
  #lines = byId("map-lines");
  #buttons = [];
  #points = [];
  #places = [];
  /** The index of the connected image and its neighbours, or null. */
  #connected = null;

  constructor() {
    super();
    new ResizeObserver(() => this.#place()).observe(this.#element);
    const tell = (name, target) => {
      const at = this.#buttons.indexOf(target.closest("button"));
      if (at >= 0) this.dispatchEvent(new CustomEvent(name, { detail: at }));
    };
    for (const name of ["pointerover", "focusin"]) this.#element.addEventListener(name, ({ target }) => tell("look", target));
    this.#element.addEventListener("click", ({ target }) => tell("pick", target));
    this.#element.addEventListener("pointerleave", () => this.dispatchEvent(new Event("leave")));
  }

  /**
   * Draws the images anew.
   * @param {Array<Object>} items images of the library.
   * @param {Array<Array<number>>} points `[x, y]` of each.
   * @param {Array<string>} labels what each picture says to those who do not see it.
   */
  draw(items, points, labels) {
    this.#connected = null;
    const focused = this.#buttons.indexOf(document.activeElement);
    this.#points = points;
    this.#places = [];
    this.#buttons = items.map((item, index) =>
      make(
        "button",
        { type: "button", "aria-label": labels[index], title: item.name },
        item.thumbnail ? make("img", { src: item.thumbnail, alt: "", draggable: "false" }) : make("span", {}, item.name),
      ),
    );
    byId("map-items").replaceChildren(...this.#buttons.map((button) => make("li", {}, button)));
    this.#place();
    this.#buttons[focused]?.focus();
  }

  /** Marks the images of the groups as duplicates. */
  markDuplicates(groups) {
    this.#buttons.forEach((button, index) => {
      const number = groups.findIndex((group) => group.includes(index)) + 1;
      if (number) button.dataset.group = number;
      else delete button.dataset.group;
    });
  }

  /** Draws lines from one image to its neighbours, the thicker the nearer, and dims the others. */
  connect(index, neighbours) {
    this.#connected = { index, neighbours };
    const near = new Set([index, ...neighbours.map((pair) => pair.index)]);
    this.#buttons.forEach((button, at) => {
      button.classList.toggle("far", !near.has(at));
      button.classList.toggle("looked-at", at === index);
    });
    if (!this.#places[index]) return; // the map has no size yet
    const [x1, y1] = this.#places[index];
    this.#lines.replaceChildren(
      ...neighbours.map((pair) => {
        const [x2, y2] = this.#places[pair.index];
        return makeSvg("line", { x1, y1, x2, y2, "stroke-width": 1 + 4 * Math.max(pair.cosine, 0) });
      }),
    );
  }

  #place() {
    if (!this.#buttons.length || !this.#element.clientWidth) return;
    const { clientWidth: width, clientHeight: height } = this.#element;
    const room = Math.sqrt((width * height) / this.#buttons.length) / 1.9;
    const side = Math.round(Math.min(Math.max(room, 30), width < 600 ? 52 : 76));
    this.#places = place(this.#points, width, height, side + GAP);
    this.#element.style.setProperty("--side", `${side}px`);
    this.#buttons.forEach((button, index) => {
      button.style.left = `${this.#places[index][0] - side / 2}px`;
      button.style.top = `${this.#places[index][1] - side / 2}px`;
    });
    this.#lines.setAttribute("viewBox", `0 0 ${width} ${height}`);
    if (this.#connected) this.connect(this.#connected.index, this.#connected.neighbours);
  }
}
