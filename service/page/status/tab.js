/** The tab Status: the model and the engine as /info describes them, the load from /metrics, drawn live. */

import { request } from "../api.js";
import { byId, make } from "../dom.js";
import { writeFragment } from "../fragment.js";
import { drawLines } from "./chart.js";
import { KEPT, Rates } from "./rates.js";

const SCRAPE_MS = 2000;
const CHARTS = [
  { id: "images", title: "Images per second", series: ["images"], digits: 1, least: 1 },
  { id: "latency", title: "Latency of requests", series: ["p95", "p50"], isNamed: true, unit: "ms", digits: 0, least: 20 },
  { id: "queue", title: "Images admitted, not yet in a batch", series: ["queue"], limit: "queue", digits: 0, least: 4 },
  { id: "lanes", title: "Busy lanes", series: ["lanes"], limit: "lanes", digits: 0, least: 1 },
  { id: "requests", title: "Requests per second", series: ["requests"], digits: 1, least: 1 },
  { id: "errors", title: "Errors per second", series: ["errors"], digits: 1, least: 1 },
];

/** Fills the panel; see `Tabs`. */
export function open(panel, context) {
  return new StatusTab(context);
}

class StatusTab {
  #context;
  #rates = new Rates();
  #timer = 0;
  #controller = new AbortController();
  #charts = {};

  constructor(context) {
    this.#context = context;
    for (const { id, title } of CHARTS) {
      const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
      svg.setAttribute("role", "img");
      const now = make("p", { class: "now" }, "–");
      this.#charts[id] = { svg, now };
      byId("charts").append(make("li", { id: `chart-${id}` }, make("h3", {}, title), now, svg));
    }
    context.addEventListener("info", () => this.#describe());
    this.#describe();
  }

  /** The tab is shown. */
  show() {
    writeFragment("status");
    this.#scrape((this.#controller = new AbortController()).signal);
  }

  /** Another tab is shown. */
  hide() {
    clearTimeout(this.#timer);
    this.#controller.abort();
  }

  async #scrape(signal) {
    try {
      if (!document.hidden) await this.#read(signal);
    } catch (error) {
      if (signal.aborted) return;
      byId("no-metrics").hidden = false;
      byId("no-metrics").textContent = `There are no figures of the load, since /metrics cannot be read: ${error.message}`;
      byId("charts").hidden = true;
      return;
    }
    if (!signal.aborted) this.#timer = setTimeout(() => this.#scrape(signal), SCRAPE_MS);
  }

  async #read(signal) {
    const response = await request("metrics", { cache: "no-store", signal });
    this.#rates.add(await response.text(), performance.now());
    byId("no-metrics").hidden = true;
    byId("charts").hidden = false;
    this.#draw();
  }

  #draw() {
    for (const { id, title, series, isNamed, limit, unit = "", digits, least } of CHARTS) {
      const values = series.map((name) => this.#rates.values[name]);
      const { svg, now } = this.#charts[id];
      const text = (value) => (value === null ? "–" : value.toFixed(digits));
      const parts = values.map((list, index) => `${isNamed ? `${series[index]} ` : ""}${text(list.at(-1))}`);
      const of = limit ? ` of ${this.#rates.limits[limit]}` : "";
      const isKnown = values.some((list) => list.at(-1) !== null);
      now.textContent = isKnown ? `${parts.join(" · ")}${of} ${unit}` : "–";
      drawLines(svg, values, KEPT, least);
      const highest = Math.max(0, ...values.flat().filter((value) => value !== null));
      svg.setAttribute("aria-label", `${title}: now ${now.textContent.trim()}; highest ${text(highest)} ${unit}`.trim());
    }
  }

  #describe() {
    const { model, version, engine, limits } = this.#context.info;
    const { config, parity, versions } = engine;
    const facts = [
      ["Model", model],
      ["Network", `${config.family}, ${config.image_size} × ${config.image_size} pixels, width ${config.embed_dim}`],
      ["Decoder", config.decoder_depth ? `${config.decoder_depth} blocks, width ${config.decoder_embed_dim}` : "none"],
      ["Head", engine.head ? `${engine.head.classes.length} classes` : "none"],
      ["Licence of the weights", engine.license],
      ["Engine", `${engine.backend} on ${engine.device}`],
      ["Precision", engine.precision],
      ["Computes in", engine.computes],
      ["Lanes", `${engine.lanes} with ${number(engine.threads_per_lane, "thread")} each, batches of at most ${number(limits.max_batch, "image")}`],
      ["Fallback", engine.fallback],
      ["Parity, centred cosine", parity && parity.cosine?.toFixed(6)],
      ["Parity, PSNR", parity?.psnr_db && `${parity.psnr_db.toFixed(1)} dB`],
      ["Parity, difference of the loss", parity?.loss_difference?.toExponential(1)],
      ["Whitening", engine.whitening?.length ? engine.whitening.join(", ") : "none"],
      ["Notes", engine.notes?.join(" ")],
      ["Version", version],
      ["Libraries", Object.entries(versions).map(([name, number]) => `${name} ${number}`).join(", ")],
    ];
    const row = ([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, String(value)));
    const rows = (pairs) => pairs.filter(([, value]) => value).map(row);
    byId("engine-facts").replaceChildren(...rows(facts));
    byId("limit-facts").replaceChildren(
      ...rows(Object.entries(limits).map(([name, value]) => [name.toUpperCase(), value.toLocaleString("en")])),
    );
  }
}

function number(count, noun) {
  return `${count} ${noun}${count === 1 ? "" : "s"}`;
}
