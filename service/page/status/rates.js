/** What the page shows of /metrics: rates, latencies and the queue, over the last minutes. */

import { buckets, parseMetrics, quantile, sum } from "./prometheus.js";

/** How many scrapes are kept. */
export const KEPT = 120;
/** A latency is that of the requests of so many scrapes. */
const WINDOW = 10;
const LATENCY = "mae_request_duration_seconds";

/** Scrapes of one server, and the values that follow from each two of them. */
export class Rates {
  #scrapes = [];
  /** Values by name, the newest last: `images`, `requests` and `errors` a second, `p50` and `p95` in ms, `queue`, `lanes`. */
  values = { images: [], requests: [], errors: [], p50: [], p95: [], queue: [], lanes: [] };

  /**
   * Takes the text of /metrics.
   * @param {string} text Prometheus' text format.
   * @param {number} time of the scrape, in milliseconds.
   */
  add(text, time) {
    const samples = parseMetrics(text);
    const before = this.#scrapes.at(-1);
    const scrape = {
      time,
      images: sum(samples, "mae_images_total"),
      requests: sum(samples, "mae_requests_total"),
      errors: sum(samples, "mae_requests_total", ({ code }) => code >= "400"),
      latency: buckets(samples, LATENCY),
    };
    if (before && scrape.requests < before.requests) this.#scrapes = []; // the server was started again
    const last = this.#scrapes.at(-1);
    const first = this.#scrapes.at(-WINDOW) ?? this.#scrapes[0];
    this.#scrapes = [...this.#scrapes, scrape].slice(-KEPT);
    const rate = (name) => (last ? (1000 * (scrape[name] - last[name])) / (time - last.time) : null);
    const latency = (share) => (first ? milliseconds(quantile(share, first.latency, scrape.latency)) : null);
    const values = {
      images: rate("images"),
      requests: rate("requests"),
      errors: rate("errors"),
      p50: latency(0.5),
      p95: latency(0.95),
      queue: sum(samples, "mae_admitted_images"),
      lanes: sum(samples, "mae_lanes_busy"),
    };
    for (const [name, value] of Object.entries(values)) this.values[name] = [...this.values[name], value].slice(-KEPT);
    /** The limits of the queue and of the lanes. */
    this.limits = { queue: sum(samples, "mae_queue_limit_images"), lanes: sum(samples, "mae_lanes") };
  }
}

function milliseconds(seconds) {
  return seconds === null ? null : 1000 * seconds;
}
