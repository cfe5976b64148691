"""HTTP_WORKERS: processes that read, decode and answer, before one process that has the engine.

    worker: accepts, parses, decodes -> slot of shared memory -> PUT  ->  device process: queue, lanes, engine
    worker: writes the answer        <- slot of shared memory <- DONE <-

`ledger` holds what is bounded for the whole service, `slots` the pixels and results that cross, `channel` the messages
beside them. `front` is a worker's side, with `remote` for the queue and `door` for connections; `desk` is the device
process's side of one worker, `crew` starts the workers and replaces those that die, `device` is the process around it
all, `tally` adds the workers' metrics up.
"""
