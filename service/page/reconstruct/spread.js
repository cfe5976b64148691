/** How sure the model is: the spread of its predictions over several masks. */

import { requestJson } from "../api.js";
import { announce, byId } from "../dom.js";
import { bytesOf } from "../images/library.js";
import { notify } from "../notices.js";
import { describeError, describeWait, hidePicture, showPicture } from "../picture.js";
import { drawRamp } from "./heat.js";
import { queryOf } from "./query.js";

const DRAWS = 8;

/** The figure of the spread. It is drawn on demand, because it costs as much as eight reconstructions. */
export class Spread {
  #controller = new AbortController();

  /** @param {function(): {item: Object, choice: Object}} present tells the image and the choice that the page shows. */
  constructor(present) {
    drawRamp(byId("spread-ramp"));
    byId("draw-spread").addEventListener("click", () => this.#draw(present()));
  }

  /** Takes the figure away, since another image or another mask is shown; `choice` is the new one. */
  reset(choice) {
    this.#controller.abort();
    byId("spread").hidden = true;
    hidePicture(byId("spread-picture"));
    byId("draw-spread").disabled = choice.kind === "painted";
    byId("spread-hint").hidden = choice.kind !== "painted";
  }

  async #draw({ item, choice }) {
    this.#controller.abort();
    const { signal } = (this.#controller = new AbortController());
    const query = queryOf(choice);
    query.set("draws", DRAWS);
    query.set("view", "spread");
    byId("draw-spread").disabled = true;
    try {
      const headers = { "content-type": "application/octet-stream" };
      const onWait = (seconds) => notify("queue", describeWait(seconds), "hint");
      const body = await bytesOf(item);
      const answer = await requestJson(`reconstruct?${query}`, { method: "POST", body, headers, signal, onWait });
      if (signal.aborted) return;
      notify("spread");
      this.#show(item, answer);
    } catch (error) {
      if (!signal.aborted) notify("spread", describeError(error, item));
    } finally {
      if (!signal.aborted) byId("draw-spread").disabled = false;
    }
  }

  #show(item, answer) {
    const [{ spread, png }] = answer.reconstructions;
    const known = spread.filter((value) => value !== null);
    const mean = known.reduce((sum, value) => sum + value, 0) / known.length;
    const seeds = `seeds ${answer.seeds[0]} to ${answer.seeds.at(-1)}`;
    const text = `${DRAWS} masks, ${seeds}: mean spread ${mean.toFixed(1)} of 255 levels`;
    byId("spread-text").textContent = text;
    const bytes = Uint8Array.from(atob(png), (letter) => letter.charCodeAt(0));
    showPicture(byId("spread-picture"), new Blob([bytes], { type: "image/png" }), `spread of ${item.name} over ${text}`);
    byId("spread").hidden = false;
    announce(text);
  }
}
