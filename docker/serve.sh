#!/bin/sh
# `docker run IMAGE serve`: so Amazon SageMaker starts a container, with the model's files in /opt/ml/model if it has any.
# The port is 8080 unless a variable sets another one; docker/healthcheck.py knows that.
if [ -z "${MAE_WEIGHTS:-}" ] && [ -n "$(ls -A /opt/ml/model 2>/dev/null)" ]; then
    export MAE_WEIGHTS=/opt/ml/model
fi
export PORT="${PORT:-8080}"
exec mae serve "$@"
