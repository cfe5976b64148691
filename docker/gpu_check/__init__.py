"""What `docker/gpu_check.sh` runs: every figure that matters on a GPU, in one bounded run, from a checkout."""
