/** Undo and redo of the choices of a mask. */

const LIMIT = 200;

/** The states that were, the present one, and those that were undone. States are never changed in place. */
export class History {
  #past = [];
  #future = [];
  #gesture = "";

  /** @param {Object} present the first state. */
  constructor(present) {
    this.present = present;
  }

  /** Makes `state` the present one. States of one gesture, as of one pull at a slider, count as one step. */
  push(state, gesture = "") {
    if (gesture === "" || gesture !== this.#gesture) this.#past.push(this.present);
    if (this.#past.length > LIMIT) this.#past.shift();
    this.#future = [];
    this.present = state;
    this.#gesture = gesture;
  }

  /** Ends a gesture: the next state is a step of its own. */
  endGesture() {
    this.#gesture = "";
  }

  /** Whether there is a step to undo. */
  get canUndo() {
    return this.#past.length > 0;
  }

  /** Whether there is a step to redo. */
  get canRedo() {
    return this.#future.length > 0;
  }

  /** Goes one step back. */
  undo() {
    this.#step(this.#past, this.#future);
  }

  /** Goes one step forward again. */
  redo() {
    this.#step(this.#future, this.#past);
  }

  #step(from, to) {
    if (!from.length) return;
    to.push(this.present);
    this.present = from.pop();
    this.endGesture();
  }
}
