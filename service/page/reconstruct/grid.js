/** The grid of patches over the picture: painted by mouse, finger or keyboard. */

import { make } from "../dom.js";
import { brush, line, rectangle } from "./mask.js";

/** The smallest side of a cell in CSS pixels that is a target for a finger (WCAG 2.2, 2.5.8). */
export const SMALLEST_TARGET = 24;
const MOVES = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };

/**
 * Shows a mask and lets the user change it. Dispatches "edit" with `{mask, final}` in `detail`: not final while a gesture
 * goes on.
 *
 * The pointer paints with a square brush, or marks a rectangle by dragging or by two clicks. On the keyboard the arrow keys
 * move, with Shift they extend a rectangle, Space removes or restores, and Escape gives up.
 */
export class PatchGrid extends EventTarget {
  /** "paint" or "rectangle". */
  tool = "paint";
  /** Side of the brush in patches. */
  brushSize = 1;
  #element;
  #cells = [];
  #columns = 0;
  #rows = 0;
  #mask = new Uint8Array();
  #at = 0;
  /** The other corner of a rectangle, or null. */
  #anchor = null;
  /** The gesture of the pointer: `{value, last, start}`, or null. */
  #gesture = null;

  constructor(element) {
    super();
    this.#element = element;
    element.addEventListener("keydown", (event) => this.#press(event));
    element.addEventListener("pointerdown", (event) => this.#begin(event));
    element.addEventListener("pointermove", (event) => this.#move(event));
    element.addEventListener("pointerup", (event) => this.#end(event));
    element.addEventListener("pointercancel", () => this.#cancel());
    element.addEventListener("pointerleave", () => this.#gesture || this.#outline(this.#anchored()));
    element.addEventListener("focusin", ({ target }) => {
      if (target.dataset.index) this.#focus(Number(target.dataset.index));
    });
  }

  /** Makes the cells of a grid of `rows` by `columns`. */
  resize(rows, columns) {
    if (rows === this.#rows && columns === this.#columns) return;
    [this.#rows, this.#columns, this.#at, this.#anchor] = [rows, columns, 0, null];
    this.#mask = new Uint8Array(rows * columns);
    this.#cells = [...this.#mask.keys()].map((index) =>
      make("div", {
        role: "gridcell",
        class: "cell",
        tabindex: index ? -1 : 0,
        "aria-selected": "false",
        "aria-label": `row ${Math.floor(index / columns) + 1}, column ${(index % columns) + 1}`,
        "data-index": index,
      }),
    );
    const row = (number) => make("div", { role: "row" }, ...this.#cells.slice(number * columns, (number + 1) * columns));
    this.#element.replaceChildren(...Array.from({ length: rows }, (_, number) => row(number)));
    this.#element.style.setProperty("--columns", columns);
    this.#element.style.setProperty("--rows", rows);
    this.#element.setAttribute("aria-rowcount", rows);
    this.#element.setAttribute("aria-colcount", columns);
  }

  /** The mask, [N]: 1 is removed. */
  get mask() {
    return this.#mask;
  }

  set mask(mask) {
    if (this.#gesture) return; // what the hand paints comes before what the server answers
    this.#draw(mask);
  }

  #draw(mask) {
    mask.forEach((flag, index) => {
      if (flag !== this.#mask[index]) this.#cells[index].setAttribute("aria-selected", flag === 1);
    });
    this.#mask = Uint8Array.from(mask);
  }

  /** Sets `indices` to `value` and tells it. */
  #apply(indices, value, final) {
    const mask = Uint8Array.from(this.#mask);
    for (const index of indices) mask[index] = value;
    this.#draw(mask);
    this.dispatchEvent(new CustomEvent("edit", { detail: { mask, final } }));
  }

  #begin(event) {
    const index = this.#indexAt(event);
    if (event.button !== 0 || index === null) return;
    event.preventDefault();
    this.#element.setPointerCapture(event.pointerId);
    this.#cells[index].focus({ preventScroll: true });
    if (this.tool === "rectangle") {
      this.#gesture = { start: this.#anchor ?? index, isSecond: this.#anchor !== null };
      this.#outline(rectangle(this.#gesture.start, index, this.#columns));
    } else {
      this.#gesture = { value: 1 - this.#mask[index], last: index };
      this.#apply(this.#brushAt(index), this.#gesture.value, false);
    }
  }

  #move(event) {
    const index = this.#indexAt(event, this.#gesture !== null);
    if (index === null) return;
    if (!this.#gesture) {
      this.#outline(this.tool === "paint" ? this.#brushAt(index) : [...this.#anchored(index), index]);
    } else if (this.tool === "rectangle") {
      this.#outline(rectangle(this.#gesture.start, index, this.#columns));
    } else if (index !== this.#gesture.last) {
      const indices = line(this.#gesture.last, index, this.#columns).flatMap((centre) => this.#brushAt(centre));
      this.#gesture.last = index;
      this.#outline(this.#brushAt(index));
      this.#apply(indices, this.#gesture.value, false);
    }
  }

  #end(event) {
    if (!this.#gesture) return;
    const gesture = this.#gesture;
    const index = this.#indexAt(event, true);
    if (this.tool === "paint") {
      this.#apply([], 0, true);
    } else if (index === gesture.start && !gesture.isSecond) {
      this.#anchor = index; // the first of two clicks
    } else {
      this.#anchor = null;
      this.#apply(rectangle(gesture.start, index, this.#columns), 1 - this.#mask[gesture.start], true);
    }
    this.#gesture = null;
    this.#outline(this.#anchored());
  }

  #cancel() {
    const wasPainting = this.#gesture && this.tool === "paint";
    [this.#gesture, this.#anchor] = [null, null];
    this.#outline([]);
    if (wasPainting) this.#apply([], 0, true);
  }

  #press(event) {
    if (event.key in MOVES || event.key === "Home" || event.key === "End") {
      const to = this.#target(event);
      if (event.shiftKey) this.#anchor ??= this.#at;
      else this.#anchor = null;
      this.#cells[to].focus();
      this.#outline(this.#anchored());
    } else if (event.key === " " || event.key === "Enter") {
      const indices = this.#anchor === null ? this.#brushAt(this.#at) : this.#anchored();
      const value = 1 - this.#mask[this.#anchor ?? this.#at];
      this.#anchor = null;
      this.#outline([]);
      this.#apply(indices, value, true);
    } else if (event.key === "Escape" && this.#anchor !== null) {
      this.#cancel();
    } else {
      return;
    }
    event.preventDefault();
  }

  #target(event) {
    const [row, column] = [Math.floor(this.#at / this.#columns), this.#at % this.#columns];
    if (event.key === "Home") return event.ctrlKey ? 0 : row * this.#columns;
    if (event.key === "End") return event.ctrlKey ? this.#mask.length - 1 : (row + 1) * this.#columns - 1;
    const [down, right] = MOVES[event.key];
    const clamp = (value, count) => Math.min(Math.max(value, 0), count - 1);
    return clamp(row + down, this.#rows) * this.#columns + clamp(column + right, this.#columns);
  }

  #focus(index) {
    this.#cells[this.#at].tabIndex = -1;
    this.#cells[index].tabIndex = 0;
    this.#at = index;
  }

  #anchored(index = this.#at) {
    return this.#anchor === null ? [] : rectangle(this.#anchor, index, this.#columns);
  }

  #brushAt(index) {
    return brush(index, this.brushSize, this.#rows, this.#columns);
  }

  #outline(indices) {
    const outlined = new Set(indices);
    this.#cells.forEach((cell, index) => cell.classList.toggle("outlined", outlined.has(index)));
  }

  /** The patch under the pointer; outside the grid null, or the nearest one if `nearest`. */
  #indexAt(event, nearest = false) {
    const box = this.#element.getBoundingClientRect();
    const row = Math.floor(((event.clientY - box.top) / box.height) * this.#rows);
    const column = Math.floor(((event.clientX - box.left) / box.width) * this.#columns);
    const isInside = row >= 0 && row < this.#rows && column >= 0 && column < this.#columns;
    if (!isInside && !nearest) return null;
    const clamp = (value, count) => Math.min(Math.max(value, 0), count - 1);
    return clamp(row, this.#rows) * this.#columns + clamp(column, this.#columns);
  }
}
