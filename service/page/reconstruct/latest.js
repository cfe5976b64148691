/** One request at a time: while it runs, only the newest of those that wait is kept. */

const IMPATIENT_MS = 1000;

/**
 * Runs jobs so that a slider that moves gets a picture for as many of its positions as the server can answer, always in
 * order, and last of all the position at which it rests.
 */
export class Latest {
  #run;
  #waiting = null;
  #running = null;

  /** @param {function(Object, AbortSignal): Promise<void>} run does a job; aborted jobs may reject. */
  constructor(run) {
    this.#run = run;
  }

  /** Runs `job` as soon as possible. A running job is aborted if it is of another `subject`, or has run for long. */
  submit(job) {
    this.#waiting = job;
    const running = this.#running;
    if (!running) this.#next();
    else if (running.job.subject !== job.subject || performance.now() - running.started > IMPATIENT_MS) {
      running.controller.abort();
    }
  }

  /** Aborts what runs and forgets what waits. */
  cancel() {
    this.#waiting = null;
    this.#running?.controller.abort();
  }

  async #next() {
    while (this.#waiting) {
      const job = this.#waiting;
      this.#waiting = null;
      const controller = new AbortController();
      this.#running = { job, controller, started: performance.now() };
      try {
        await this.#run(job, controller.signal);
      } finally {
        this.#running = null;
      }
    }
  }
}
