/** The tab Anomaly: which patches of the selected image are not normal. */

import { imageForm, request } from "../api.js";
import { announce, byId } from "../dom.js";
import { readFragment, writeFragment } from "../fragment.js";
import { bytesOf } from "../images/library.js";
import { notify } from "../notices.js";
import { describeError, describeWait, hidePicture, showPicture } from "../picture.js";
import { drawRamp } from "../reconstruct/heat.js";
import { Ranking } from "./ranking.js";

/** The score that is shown in the brightest colour where there is no threshold. */
const RAW_BRIGHTEST = 2;
const SEED = "7";
const MEANINGS = {
  features: "The score of a patch is the distance of its token to the nearest one of normal images.",
  reconstruction: "Each patch is predicted from the others. Its score is the error of the prediction: high where it is unlike the rest of the image.",
};

/** Fills the panel; see `Tabs`. */
export function open(panel, context) {
  return new AnomalyTab(panel, context);
}

class AnomalyTab {
  #panel;
  #context;
  #isShown = false;
  #controller = new AbortController();
  #ranking;

  constructor(panel, context) {
    this.#panel = panel;
    this.#context = context;
    this.#ranking = new Ranking(context, () => this.#query());
    drawRamp(byId("anomaly-ramp"));
    panel.addEventListener("change", ({ target }) => {
      if (target.name !== "anomaly-view") this.#ranking.clear();
      this.#detect();
    });
    context.library.addEventListener("select", () => this.#detect());
    context.addEventListener("info", () => {
      this.#offer();
      this.#detect();
    });
    this.#offer();
    this.#readFragment();
    addEventListener("hashchange", () => {
      this.#readFragment();
      this.#detect();
    });
  }

  /** The tab is shown. */
  show() {
    this.#isShown = true;
    this.#detect();
  }

  /** Another tab is shown. */
  hide() {
    this.#isShown = false;
    this.#controller.abort();
    this.#ranking.cancel();
  }

  #chosen(name) {
    return this.#panel.querySelector(`input[name="anomaly-${name}"]:checked`).value;
  }

  #choose(name, value) {
    const radio = [...this.#panel.querySelectorAll(`input[name="anomaly-${name}"]`)].find((input) => input.value === value);
    if (radio && !radio.disabled) radio.checked = true;
  }

  /** Takes over image, method and view from the address, if it is of this tab. */
  #readFragment() {
    const { tab, parameters } = readFragment();
    if (tab !== "anomaly") return;
    this.#context.library.select(parameters.get("image"));
    for (const name of ["method", "view"]) this.#choose(name, parameters.get(name));
  }

  /** Offers what the weights can do. */
  #offer() {
    const { memory_bank: bank, config } = this.#context.info.engine;
    const able = { features: Boolean(bank), reconstruction: config.decoder_depth > 0 };
    for (const [method, offered] of Object.entries(able)) {
      this.#panel.querySelector(`input[name="anomaly-method"][value="${method}"]`).disabled = !offered;
    }
    this.#choose("method", able.features ? "features" : "reconstruction");
    this.#panel.querySelector('input[name="anomaly-view"][value="expected"]').disabled = !able.reconstruction;
    byId("anomaly-unfit").hidden = able.features;
  }

  /** The parameters of the route that decide about scores. */
  #query() {
    const method = this.#chosen("method");
    if (method === "features") return new URLSearchParams({ method, false_alarms: byId("false-alarms").value });
    return new URLSearchParams({ method, seed: SEED });
  }

  async #detect() {
    if (!this.#isShown) return;
    const item = this.#context.library.selected;
    const method = this.#chosen("method");
    const isCalibrated = method === "features";
    this.#panel.querySelector('input[name="anomaly-view"][value="mask"]').disabled = !isCalibrated;
    if (!isCalibrated && this.#chosen("view") === "mask") this.#choose("view", "overlay");
    byId("false-alarms-choice").hidden = !isCalibrated;
    byId("anomaly-meaning").textContent = MEANINGS[method];
    const view = this.#chosen("view");
    writeFragment("anomaly", new URLSearchParams({ ...(item.example ? { image: item.id } : {}), method, view }));
    const query = this.#query();
    query.set("view", view);
    if (view === "expected") query.set("seed", SEED);
    this.#controller.abort();
    const { signal } = (this.#controller = new AbortController());
    this.#panel.classList.add("waiting");
    try {
      const body = imageForm([{ blob: await bytesOf(item), name: item.name }]);
      const onWait = (seconds) => notify("queue", describeWait(seconds), "hint");
      const headers = { accept: "image/png" };
      const response = await request(`anomaly?${query}`, { method: "POST", body, headers, signal, onWait });
      const picture = await response.blob();
      if (signal.aborted) return;
      notify("anomaly");
      this.#show(item, view, picture, response.headers);
    } catch (error) {
      if (signal.aborted) return;
      hidePicture(byId("anomaly-picture"));
      byId("anomaly-score").textContent = byId("anomaly-threshold").textContent = byId("anomaly-verdict").textContent = "–";
      notify("anomaly", describeError(error, item));
    } finally {
      if (!signal.aborted) this.#panel.classList.remove("waiting");
    }
  }

  #show(item, view, picture, headers) {
    const score = Number(headers.get("x-mae-score"));
    const threshold = headers.get("x-mae-threshold");
    const flagged = headers.get("x-mae-flagged");
    const verdict = { true: "anomalous", false: "normal" }[flagged] ?? "none";
    byId("anomaly-name").textContent = item.name;
    byId("anomaly-score").textContent = score.toPrecision(3);
    byId("anomaly-threshold").textContent = threshold === null ? "none" : Number(threshold).toPrecision(3);
    byId("anomaly-verdict").textContent = verdict;
    byId("anomaly-verdict").dataset.flagged = flagged;
    const brightest = threshold === null ? RAW_BRIGHTEST : 2 * threshold;
    byId("anomaly-brightest").textContent = `≥ ${brightest.toPrecision(2)}`;
    byId("anomaly-legend").hidden = view === "mask" || view === "expected";
    const words = `${view} of ${item.name}, score ${score.toPrecision(3)}${flagged === null ? "" : `, ${verdict}`}`;
    showPicture(byId("anomaly-picture"), picture, words);
    announce(words);
  }
}
