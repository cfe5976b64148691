/** The controls of the mask: ratio, strategy, seed, tools, and undo. */

import { byId } from "../dom.js";
import { newSeed, parseSeed, removedByRatio, STRATEGIES } from "./choice.js";
import { countRemoved, invert } from "./mask.js";

/**
 * Reads and shows the controls. Dispatches "choose" with `{choice, gesture}`, "settle" at the end of a gesture,
 * "undo", "redo" and "surprise".
 */
export class Controls extends EventTarget {
  #ratio = byId("ratio");
  #seed = byId("seed");
  #lock = byId("seed-lock");
  #strategies = [...document.querySelectorAll('input[name="strategy"]')];
  #grid;
  /** The last choice that a seed drew: what the slider goes back to after painting. */
  #drawn;

  /**
   * @param {PatchGrid} grid gets the tool and the size of the brush.
   * @param {Object} drawn the choice to begin with.
   */
  constructor(grid, drawn) {
    super();
    this.#grid = grid;
    this.#drawn = drawn;
    this.#ratio.addEventListener("input", () => this.#draw({ ratio: this.#ratio.valueAsNumber / 100 }, "ratio"));
    for (const field of [this.#ratio, this.#seed]) {
      field.addEventListener("change", () => this.dispatchEvent(new Event("settle")));
    }
    for (const radio of this.#strategies) radio.addEventListener("change", () => this.#draw({ strategy: radio.value }));
    this.#seed.addEventListener("input", () => this.#typeSeed());
    byId("dice").addEventListener("click", () => this.#draw({ seed: newSeed() }));
    this.#lock.addEventListener("click", () => this.#toggleLock());
    byId("surprise").addEventListener("click", () => this.#surprise());
    byId("undo").addEventListener("click", () => this.dispatchEvent(new Event("undo")));
    byId("redo").addEventListener("click", () => this.dispatchEvent(new Event("redo")));
    byId("invert").addEventListener("click", () => this.#choose({ kind: "painted", mask: invert(grid.mask) }));
    byId("clear").addEventListener("click", () =>
      this.#choose({ kind: "painted", mask: new Uint8Array(grid.mask.length) }),
    );
    for (const radio of document.querySelectorAll('input[name="tool"]')) {
      radio.addEventListener("change", () => {
        grid.tool = radio.value;
        byId("brush-size").disabled = radio.value !== "paint";
      });
    }
    byId("brush-size").addEventListener("change", ({ target }) => {
      grid.brushSize = Number(target.value);
    });
  }

  /** Whether the seed stays the same when ratio, strategy or image change. */
  get isLocked() {
    return this.#lock.getAttribute("aria-pressed") === "true";
  }

  /** The choice to which another image leads: the same one, or another seed if the seed is not locked. */
  choiceForNewImage(choice) {
    return choice.kind === "drawn" && !this.isLocked ? { ...choice, seed: newSeed() } : choice;
  }

  /** Shows `choice` of `count` patches, and whether there is something to undo and redo. */
  show(choice, count, { canUndo, canRedo }) {
    if (choice.kind === "drawn") this.#drawn = choice;
    const removed = choice.kind === "drawn" ? removedByRatio(choice.ratio, count) : countRemoved(choice.mask);
    const percent = choice.kind === "drawn" ? Math.round(100 * choice.ratio) : Math.round((100 * removed) / count);
    this.#ratio.max = Math.ceil((100 * (count - 1)) / count) - 1;
    this.#ratio.value = percent;
    this.#ratio.setAttribute("aria-valuetext", `${percent} %, ${removed} of ${count} patches removed`);
    this.#ratio.style.setProperty("--filled", `${percent}%`);
    byId("ratio-percent").textContent = `${percent} %`;
    byId("ratio-count").textContent = `${removed} of ${count} removed`;
    const { strategy, seed } = this.#drawn;
    for (const radio of this.#strategies) radio.checked = radio.value === strategy;
    if (parseSeed(this.#seed.value) !== seed) this.#seed.value = seed;
    this.#seed.removeAttribute("aria-invalid");
    byId("seed-error").hidden = true;
    byId("by-hand").hidden = choice.kind === "drawn";
    byId("undo").disabled = !canUndo;
    byId("redo").disabled = !canRedo;
  }

  #draw(change, gesture = "") {
    const seed = this.isLocked ? this.#drawn.seed : newSeed();
    this.#choose({ ...this.#drawn, seed, ...change }, gesture);
  }

  #typeSeed() {
    const seed = parseSeed(this.#seed.value);
    byId("seed-error").hidden = seed !== null;
    if (seed === null) this.#seed.setAttribute("aria-invalid", "true");
    else this.#draw({ seed }, "seed");
  }

  #toggleLock() {
    const locked = !this.isLocked;
    this.#lock.setAttribute("aria-pressed", locked);
    this.#lock.title = locked ? "The seed stays the same" : "Each change draws a new seed";
  }

  #surprise() {
    const random = (count) => crypto.getRandomValues(new Uint32Array(1))[0] % count;
    this.dispatchEvent(new Event("surprise"));
    this.#draw({ ratio: (50 + 5 * random(9)) / 100, strategy: STRATEGIES[random(3)], seed: newSeed() });
  }

  #choose(choice, gesture = "") {
    this.dispatchEvent(new CustomEvent("choose", { detail: { choice, gesture } }));
  }
}
