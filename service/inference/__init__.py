"""From the images of a request to its results: decoding, queue, scheduler, execution, postprocessing."""
