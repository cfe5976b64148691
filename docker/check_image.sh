#!/usr/bin/env bash
# Builds the image's `cpu` target, runs it, and exits with 1 at the first check that fails.
#
#   docker/check_image.sh                        with docker where its daemon answers, else with podman (and runc)
#   BASE=debootstrap docker/check_image.sh       makes the base image from Debian's packages, where none can be pulled
#
# BASE          base image, as the build argument
# BUILD_FLAGS   more flags for the build: a mirror, a proxy, certificates, --secret id=pip.conf,src=…
# IMAGE         name of the image that is built (mae-serve-check:cpu); KEEP=1 keeps it
#
# Needs curl and python3 beside docker or podman. Servers listen on the loopback interface.
set -euo pipefail
cd "$(dirname "$0")/.."

IMAGE=${IMAGE:-mae-serve-check:cpu}
NAME=mae-serve-check-$$
VOLUME=$NAME-cache
WORK=$(mktemp -d)
read -ra EXTRA_BUILD_FLAGS <<<"${BUILD_FLAGS:-}"

if docker info >/dev/null 2>&1; then
    TOOL=docker BUILD=(docker build) RUN=(docker run)
else
    # HEALTHCHECK needs docker's format; chroot, the host's network and runc with limits of its own do without a daemon,
    # without a bridge and without cgroups of version 2, so they work inside other containers too.
    TOOL=podman
    BUILD=(podman build --format docker --isolation chroot --network host --pull=never)
    RUN=(podman --runtime runc --log-level fatal run --pull=never --network host
        --ulimit nofile=1024:1024 --ulimit nproc=1000:1000)
fi
# The image must work under these restrictions.
RUN+=(--read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges)
[[ $TOOL == podman ]] && RUN+=(--read-only-tmpfs=false)

cleanup() {
    "$TOOL" rm --force "$NAME" >/dev/null 2>&1 || true
    "$TOOL" volume rm --force "$VOLUME" >/dev/null 2>&1 || true
    [[ -n ${KEEP:-} ]] || "$TOOL" rmi --force "$IMAGE" >/dev/null 2>&1 || true
    rm -rf "$WORK"
}
trap cleanup EXIT

fail() {
    echo "FAILED: $*" >&2
    "$TOOL" logs "$NAME" 2>&1 | tail -20 >&2 || true
    exit 1
}
ok() { echo "ok    $*"; }
is() { [[ $2 == "$3" ]] || fail "$1: expected '$3', found '$2'"; ok "$1: $2"; }
now() { date +%s.%N; }
since() { python3 -c 'import sys; print(f"{float(sys.argv[2]) - float(sys.argv[1]):.1f} s")' "$1" "$(now)"; }
inspect() { "$TOOL" image inspect --format "$1" "$IMAGE"; }
# Python inside the image: `inside CODE [FLAG…]`.
inside() { "${RUN[@]}" --rm "${@:2}" "$IMAGE" python -c "$1"; }

build() { # build CONTEXT
    local arguments=(--build-arg "REVISION=$REVISION")
    [[ -z ${BASE:-} ]] || arguments+=(--build-arg "BASE=$BASE")
    "${BUILD[@]}" "${EXTRA_BUILD_FLAGS[@]}" "${arguments[@]}" --target cpu --tag "$IMAGE" "$1" >"$WORK/build.log" 2>&1 ||
        { tail -40 "$WORK/build.log" >&2; fail "the build"; }
}

start() { # start [FLAG…]: a server, and waits until it is ready; sets STARTED to how long that took
    local began
    PORT=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    local listen=(--publish "127.0.0.1:$PORT:8000")
    [[ $TOOL == podman ]] && listen=(--env MAE_HOST=127.0.0.1 --env "MAE_PORT=$PORT")
    "$TOOL" rm --force "$NAME" >/dev/null 2>&1 || true
    began=$(now)
    "${RUN[@]}" --detach --name "$NAME" "${listen[@]}" --volume "$VOLUME:/cache" "$@" "$IMAGE" >/dev/null
    for _ in $(seq 600); do
        if curl --silent --fail --output /dev/null "http://127.0.0.1:$PORT/readyz"; then
            STARTED=$(since "$began")
            return
        fi
        sleep 0.2
    done
    fail "the server is not ready after 2 minutes"
}

count_conversions() { "$TOOL" logs "$NAME" 2>&1 | grep -c 'converting' || true; }

if [[ ${BASE:-} == debootstrap ]]; then
    BASE=localhost/mae-serve-base:bookworm
    if ! "$TOOL" image inspect "$BASE" >/dev/null 2>&1; then
        mirror=$(grep -rhoE --include='*.list' --include='*.sources' 'https?://[^ ]+/debian/?( |$)' /etc/apt | tr -d ' ' | head -1)
        debootstrap --variant=minbase --include=python3,python3-pip,python3-venv,ca-certificates bookworm \
            "$WORK/root" "$mirror" >"$WORK/debootstrap.log"
        tar -C "$WORK/root" -c . | "$TOOL" import - "$BASE" >"$WORK/import.log" 2>&1 || fail "$(cat "$WORK/import.log")"
        rm -rf "$WORK/root"
    fi
fi
REVISION=$(git rev-parse HEAD)

echo "== build"
began=$(now)
build .
ok "built in $(since "$began") (layers of an earlier build count as cached: $(grep -cE 'Using cache|CACHED' "$WORK/build.log" || true))"
ok "size: $(inspect '{{.Size}}' | python3 -c 'print(f"{int(input()) / 1e6:.0f} MB, base image included")')"
is "user" "$(inspect '{{.Config.User}}')" 10001:10001
label() { inspect "{{index .Config.Labels \"org.opencontainers.image.$1\"}}"; }
is "label version" "$(label version)" "$(python3 -c 'import tomllib; print(tomllib.load(open("pyproject.toml", "rb"))["project"]["version"])')"
is "label licenses" "$(label licenses)" "Apache-2.0 AND CC-BY-4.0"
inspect '{{json .Config.Env}}' | grep -q 'PIP_' && fail "pip's configuration is in the image's environment"
ok "nothing of pip in the environment"

echo "== contents"
is "identity inside" "$(inside 'import os; print(os.getuid(), os.getgid())')" "10001 10001"
is "compilers, pip of the environment, caches, tests, foreign weights" "$(inside '
import pathlib, shutil
superfluous = [tool for tool in ("gcc", "cc", "g++", "clang", "make") if shutil.which(tool)]
superfluous += pathlib.Path("/opt/venv/bin").glob("pip*")
superfluous += [path for path in ("/root/.cache", "/cache/.cache", "/src", "/requirements") if pathlib.Path(path).exists()]
superfluous += [path for path in pathlib.Path("/opt/mae").rglob("*") if path.name in ("tests", ".git", "Dockerfile")]
weights = {path for suffix in ("safetensors", "pth", "pt") for path in pathlib.Path("/opt/mae").rglob(f"*.{suffix}")}
superfluous += weights - {pathlib.Path("/opt/mae/model/weights/mae_tiny.safetensors")}
print(*superfluous or ["none"])' --user 0)" none
is "the root file system is read-only" "$(inside '
try:
    open("/opt/mae/x", "w")
except OSError as error:
    print(error.strerror)')" "Read-only file system"

echo "== start"
start --env MAE_ENGINE_CACHE=/cache/anew
is "conversions at a start with an empty cache" "$(count_conversions)" 0
ok "ready after $STARTED"
start --env MAE_ENGINE_CACHE=/cache/anew
is "conversions at a restart on the same volume" "$(count_conversions)" 0
ok "ready after $STARTED"
start --volume "$PWD/tests/data:/weights:ro" --env MAE_WEIGHTS=/weights/mae_probe_tiny.safetensors
is "conversions at the first start with weights of one's own" "$(count_conversions)" 1
ok "ready after $STARTED"
"$TOOL" rm --force "$NAME" >/dev/null 2>&1
"$TOOL" volume rm "$VOLUME" >/dev/null
start
is "conversions at the first start, by the engine that is built in" "$(count_conversions)" 0
ok "ready after $STARTED"

echo "== health"
if [[ $TOOL == podman ]]; then
    podman healthcheck run "$NAME" >/dev/null || fail "the health check of a server that is ready"
else
    for _ in $(seq 40); do
        [[ $(docker inspect --format '{{.State.Health.Status}}' "$NAME") == healthy ]] && break
        sleep 1
    done
    is "health" "$(docker inspect --format '{{.State.Health.Status}}' "$NAME")" healthy
fi
ok "the health check passes"
"$TOOL" exec --env MAE_PORT=1 "$NAME" python -I /opt/mae/bin/healthcheck.py >/dev/null &&
    fail "the health check passes where nothing listens"
ok "and fails where nothing listens"

echo "== SageMaker"
"$TOOL" rm --force "$NAME" >/dev/null 2>&1
"${RUN[@]}" --detach --name "$NAME" --volume "$VOLUME:/cache" --env MAE_HOST=127.0.0.1 --env "PORT=$PORT" "$IMAGE" serve >/dev/null
for _ in $(seq 300); do
    "$TOOL" exec "$NAME" python -I /opt/mae/bin/healthcheck.py >/dev/null 2>&1 && break
    sleep 0.2
done
"$TOOL" exec "$NAME" python -I /opt/mae/bin/healthcheck.py >/dev/null || fail "the argument serve starts no server"
is "the port of serve, by its health check" "$("$TOOL" exec --env PORT= "$NAME" python -I -c '
import runpy
print(runpy.run_path("/opt/mae/bin/healthcheck.py")["own_port"]())')" 8080
ok "the argument serve starts a server"
start

echo "== requests"
"${RUN[@]}" --rm "$IMAGE" python -c '
import io, sys
from PIL import Image
image = Image.effect_mandelbrot((320, 240), (-2, -1.5, 1, 1.5), 100).convert("RGB")
image.save(sys.stdout.buffer, "JPEG")' >"$WORK/photo.jpg"
embed_dim=$(curl --silent --fail "http://127.0.0.1:$PORT/info" |
    python3 -c 'import json, sys; print(json.load(sys.stdin)["engine"]["config"]["embed_dim"])')
curl --silent --fail --form "image=@$WORK/photo.jpg" "http://127.0.0.1:$PORT/embed" >"$WORK/embed.json" ||
    fail "POST /embed"
is "POST /embed: length of the vector, all of it finite" "$(python3 -c '
import json, math, sys
vector, = json.load(open(sys.argv[1]))["embeddings"]
print(len(vector) if all(map(math.isfinite, vector)) and any(vector) else "broken")' "$WORK/embed.json")" "$embed_dim"
curl --silent --fail --form "image=@$WORK/photo.jpg" "http://127.0.0.1:$PORT/reconstruct?view=panel" >"$WORK/panel.png" ||
    fail "POST /reconstruct"
is "POST /reconstruct" "$("${RUN[@]}" --rm --interactive "$IMAGE" python -c '
import sys
from PIL import Image
image = Image.open(sys.stdin.buffer)
image.load()
print(image.format, len(image.getcolors(1 << 24)) > 100)' <"$WORK/panel.png")" "PNG True"

echo "== SIGTERM under load"
cat >"$WORK/load.py" <<'END'
"""Six clients send requests of 16 images one after another until they are refused, 60 s at most.

Prints, for each request, when it began, when it ended, and its status or the error's name.
"""

import http.client
import sys
import threading
import time

port, photo = int(sys.argv[1]), open(sys.argv[2], "rb").read()
part = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n' + photo + b"\r\n"
body = part * 16 + b"--x--\r\n"
end = time.time() + 60


def client() -> None:
    while time.time() < end:
        began = time.time()
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=40)
            connection.request("POST", "/embed", body, {"Content-Type": "multipart/form-data; boundary=x"})
            answer = connection.getresponse()
            answer.read()
            outcome = str(answer.status)
        except (OSError, http.client.HTTPException) as error:
            outcome = type(error).__name__
        sys.stdout.write(f"{began} {time.time()} {outcome}\n")
        if outcome != "200":
            return


threads = [threading.Thread(target=client) for _ in range(6)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
END
python3 "$WORK/load.py" "$PORT" "$WORK/photo.jpg" >"$WORK/load.txt" &
load=$!
sleep 4
signalled=$(now)
"$TOOL" stop --time 40 "$NAME" >/dev/null 2>&1
stopped=$(since "$signalled")
wait "$load"
is "exit code" "$("$TOOL" inspect --format '{{.State.ExitCode}}' "$NAME")" 0
ok "gone after $stopped"
python3 - "$signalled" "$WORK/load.txt" <<'END' || fail "requests were dropped: $(sort -k 3 "$WORK/load.txt" | tail -5)"
import collections
import sys

signalled = float(sys.argv[1])
requests = [(float(begin), float(end), outcome) for begin, end, outcome in map(str.split, open(sys.argv[2]))]
# A request takes a moment to arrive.
accepted = [(end, outcome) for begin, end, outcome in requests if begin < signalled - 0.1]
during = sum(end > signalled for end, _ in accepted)
later = collections.Counter(outcome for begin, _, outcome in requests if begin >= signalled)
print(f"ok    {len(accepted)} requests before the signal, {during} of them unfinished then; later ones: {dict(later)}")
sys.exit(any(outcome != "200" for _, outcome in accepted) or during == 0)
END

echo "== rebuild after a change of the service's code"
mkdir "$WORK/context"
git ls-files -z | xargs -0 cp --archive --parents --target-directory "$WORK/context"
layers() { inspect '{{range .RootFS.Layers}}{{println .}}{{end}}' | grep .; }
layers >"$WORK/before.txt"
echo '# changed' >>"$WORK/context/service/api/app.py"
REVISION+=-changed
began=$(now)
build "$WORK/context"
ok "rebuilt in $(since "$began"), with $(grep -cE 'Using cache|CACHED' "$WORK/build.log" || true) steps from the cache"
layers >"$WORK/after.txt"
is "layers made anew, of $(wc -l <"$WORK/after.txt")" "$(diff "$WORK/before.txt" "$WORK/after.txt" | grep -c '^>')" 1
# The first build is not checked for this: podman 4.3 takes a LABEL from its cache even if its argument has changed.
is "label revision" "$(label revision)" "$REVISION"
echo "passed"
