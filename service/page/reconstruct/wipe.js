/** The wipe: the original on the left of a line that moves, the chosen view on its right. */

/** Moves the line by its slider, or by dragging over the picture. */
export class Wipe {
  #stage;
  #slider;

  constructor(stage, slider) {
    this.#stage = stage;
    this.#slider = slider;
    slider.addEventListener("input", () => this.#place());
    stage.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      stage.setPointerCapture(event.pointerId);
      this.#follow(event);
    });
    stage.addEventListener("pointermove", (event) => {
      if (stage.hasPointerCapture(event.pointerId)) this.#follow(event);
    });
    this.#place();
  }

  #follow(event) {
    const box = this.#stage.getBoundingClientRect();
    this.#slider.value = (100 * (event.clientX - box.left)) / box.width;
    this.#place();
  }

  #place() {
    const percent = Math.round(Number(this.#slider.value));
    this.#stage.style.setProperty("--wipe", `${percent}%`);
    this.#slider.setAttribute("aria-valuetext", `${percent} % original, ${100 - percent} % result`);
  }
}
