"""HTTP_WORKERS: processes that read, decode and answer requests, before one process that has the engine.

    worker: accepts, parses, decodes -> slot of shared memory -> PUT  ->  engine process: queue, lanes, engine
    worker: writes the answer        <- slot of shared memory <- DONE <-  engine process

Both sides use `shared_counters` (the limits of the whole service), `shared_buffers` (the slots for pixels and results)
and `channel` with its `messages`. A worker has `worker` (its service), `scheduler_client` (its way to the queue),
`search_client` (its way to the index) and `acceptor` (its connections). The engine process has `engine_process` with a
`worker_connection` for each worker, `worker_searches`, the `supervisor` that starts and replaces workers, and
`metrics_merge`, which adds their metrics up.
"""
