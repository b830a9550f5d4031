#!/usr/bin/env bash
# From a fresh Debian machine to a running instance: installs what is missing, builds, starts the service, runs an image.
# Safe to run again. Stop the service with ./quickstart.sh stop; remove everything with ./quickstart.sh remove.
set -euo pipefail
cd "$(dirname "$0")"

data=${SAMPAN_DATA_DIR:-/var/lib/sampan}
run=${SAMPAN_RUN_DIR:-/run/sampan}
registry_folder=$data/quickstart-registry
registry_port=${SAMPAN_QUICKSTART_PORT:-5055}
public_image=docker.io/library/python:3-slim
export SAMPAN_SOCKET=$run/sampan.sock
sampan=$PWD/target/release/sampan

stop_pid() { # FILE NAME
  if [ -e "$1" ] && kill -0 "$(cat "$1")" 2>/dev/null; then
    kill "$(cat "$1")"
    while kill -0 "$(cat "$1")" 2>/dev/null; do sleep 0.1; done
    echo "stopped $2"
  fi
  rm -f "$1"
}

case "${1:-run}" in
  run) ;;
  stop)
    stop_pid "$run/registry.pid" "the local registry"
    stop_pid "$run/serve.pid" "the service; instances go on, and the next start finds them"
    exit ;;
  remove)
    if "$sampan" version >/dev/null 2>&1; then
      instances=$("$sampan" ps -aq)
      [ -z "$instances" ] || "$sampan" rm -f $instances
    fi
    "$0" stop
    rm -rf "$data" "$run"
    echo "removed $data and $run; the packages and the build in target/ stay"
    exit ;;
  *) echo "usage: ./quickstart.sh [run|stop|remove]" >&2; exit 2 ;;
esac

. ./setup.sh quickstart

say "building the release binary (some minutes the first time)"
cargo build --release --locked -p sampan

mkdir -p "$run"
if "$sampan" version >/dev/null 2>&1; then
  say "the service runs already"
else
  say "starting the service; its log is $run/serve.log"
  setsid "$sampan" serve --data-dir "$data" --run-dir "$run" >"$run/serve.log" 2>&1 </dev/null &
  echo $! > "$run/serve.pid"
  for _ in $(seq 300); do
    grep -q '^sampan: ready' "$run/serve.log" && break
    kill -0 "$(cat "$run/serve.pid")" 2>/dev/null || { tail -n 3 "$run/serve.log" >&2; exit 1; }
    sleep 0.1
  done
fi

say "looking for a public registry"
if "$sampan" pull "$public_image" 2>/dev/null; then
  image=$public_image
  program='import sys; print("Hello from Python", sys.version.split()[0], "in an instance of your own")'
else
  say "none answers: making a real image from Debian packages (Python and NumPy) in a local registry"
  mkdir -p "$registry_folder"
  if ! curl -sf "http://127.0.0.1:$registry_port/v2/" >/dev/null; then
    printf 'version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: %s\nhttp:\n  addr: 127.0.0.1:%s\n' \
      "$registry_folder" "$registry_port" > "$registry_folder.yml"
    setsid docker-registry serve "$registry_folder.yml" >"$run/registry.log" 2>&1 </dev/null &
    echo $! > "$run/registry.pid"
    for _ in $(seq 100); do curl -sf "http://127.0.0.1:$registry_port/v2/" >/dev/null && break; sleep 0.1; done
  fi
  image=$(cargo run --quiet --locked --release -p sampan-e2e --bin fixtures -- quickstart --registry "127.0.0.1:$registry_port")
  program='import numpy; a = numpy.arange(9.0).reshape(3, 3); print("Hello from NumPy", numpy.__version__); print(a @ a.T)'
fi

say "running an instance of $image"
name=quickstart-$$
"$sampan" run --name "$name" "$image" python3 -c "$program"
say "where the time went"
"$sampan" timeline "$name"
"$sampan" rm "$name" >/dev/null

cat <<END

Try next:
  export PATH=$PWD/target/release:\$PATH
  sampan run --rm -it $image sh             a shell in an instance of its own
  sampan run -d --name web -p 8080:80 IMAGE a server on port 8080
  sampan ps; sampan logs web; sampan stats --no-stream
  kubectl --kubeconfig $data/kubeconfig get pods -o wide
  sampan host check                         what this machine offers and what is missing
Stop the service: ./quickstart.sh stop      Remove everything: ./quickstart.sh remove
END
