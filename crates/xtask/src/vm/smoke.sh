# What has to work on every kernel that the service supports; each check is a line for `cargo xtask vm`.
IMAGE=oci:/srv/busybox:latest
STEP_SECONDS=40
LOG=/tmp/serve.log
# The shell would take its own for it.
IP=/usr/bin/ip

ok() { echo "@@ ok $1"; }
fail() { echo "@@ FAIL $1: $(echo "$2" | tail -n 12 | tr '\n' '|')"; }

# check NAME CODE PATTERN COMMAND…: the exit code is CODE, and the output has a line like PATTERN.
check() {
    name=$1 code=$2 pattern=$3
    shift 3
    said=$(timeout -s KILL $STEP_SECONDS "$@" 2>&1 </dev/null)
    got=$?
    if [ $got -ne "$code" ]; then
        fail "$name" "exit code $got, not $code: $said"
    elif ! echo "$said" | grep -qE -- "$pattern"; then
        fail "$name" "no '$pattern' in: $said"
    else
        ok "$name"
    fi
}

# wait_for NAME COMMAND…: until it succeeds.
wait_for() {
    name=$1 tries=0
    shift
    until timeout -s KILL 30 "$@" >/tmp/waited 2>&1 </dev/null; do
        tries=$((tries + 1))
        if [ $tries -ge 25 ]; then
            fail "$name" "$(cat /tmp/waited; tail -n 5 $LOG 2>/dev/null)"
            return 1
        fi
        sleep 1
    done
    ok "$name"
}

start_service() {
    # In a group of its own, as systemd has it.
    sh -c 'echo $$ > /sys/fs/cgroup/system.slice/sampan.service/cgroup.procs; exec sampan serve' >>$LOG 2>&1 &
    service=$!
    wait_for "$1" sampan ps && return
    # Nothing else can work.
    dmesg | tail -n 20
    exit 1
}

# The processes of the service in this role; instances' agents have other names.
part() {
    for pid in $(pidof sampan); do
        tr '\0' ' ' <"/proc/$pid/cmdline" | grep -q "internal $1" && [ "$(cut -d ' ' -f 4 /proc/$pid/stat)" = "$service" ] && echo "$pid"
    done
}

# Everything on the machine that an instance may have made.
traces() {
    grep -v ' /run/sampan/' /proc/mounts | sort
    grep -l . /sys/block/loop*/loop/backing_file 2>/dev/null
    find /sys/fs/cgroup -mindepth 1 -type d | sort
    $IP -o link | sed 's/^[0-9]*: //; s/ .*//' | sort
    nft list ruleset
    ls -l /proc/*/ns/net 2>/dev/null | sed 's/.*net:/net:/' | sort -u | wc -l
    pidof sampan
}

echo "@@ fact kernel: $(uname -r)"
# An outside that knows nothing of instances: what comes back from it was translated.
$IP netns add outside
$IP link add up0 type veth peer name up1 netns outside
$IP addr add 198.51.100.1/24 dev up0
$IP link set up0 up
$IP -n outside addr add 198.51.100.2/24 dev up1
$IP -n outside link set up1 up
$IP -n outside link set lo up
$IP route add default via 198.51.100.2
$IP netns exec outside sh -c 'mkdir -p /tmp/www; echo from-outside > /tmp/www/index.html; exec busybox httpd -p 80 -h /tmp/www'
modprobe -q nft_chain_nat # so that the rule set before and after looks the same
traces >/tmp/before

sampan host check >/tmp/host-check 2>&1
echo "@@ fact host check: exit code $?"
sed 's/^/@@ fact host check: /' /tmp/host-check

start_service "service starts"
check "host check" 0 'kernel' sampan host check
check "run" 0 '^hello$' sampan run --rm $IMAGE echo hello
check "exit code" 42 '' sampan run --rm $IMAGE sh -c 'exit 42'
check "command not found" 127 'no-such' sampan run --rm $IMAGE no-such-command
check "own user" 0 '^1000$' sampan run --rm --user sampan $IMAGE id -u
check "user namespace" 0 '^ *0 +[1-9][0-9]+ ' sampan run --rm $IMAGE cat /proc/self/uid_map
check "owners in the root" 0 '^0 0$' sampan run --rm $IMAGE stat -c '%u %g' /bin/sh
check "writing over an image file" 0 '^mine$' sampan run --rm $IMAGE sh -c 'echo mine > /etc/passwd; cat /etc/passwd'
check "devices" 0 '^4$' sampan run --rm $IMAGE sh -c 'head -c 4 /dev/zero | wc -c; head -c 1 /dev/urandom >/dev/null'
check "masked paths" 0 '^0$' sampan run --rm $IMAGE sh -c 'wc -c </proc/kcore'
check "host path" 0 '^busybox' sampan run --rm -v /srv:/data:ro $IMAGE ls /data
check "memory limit" 137 '' sampan run --name oom --memory 32Mi $IMAGE tail /dev/zero
check "memory limit's reason" 0 'OOMKilled' sampan inspect oom
check "removing" 0 'oom' sampan rm oom
check "disk limit" 0 'No space left' sampan run --rm --disk 32Mi $IMAGE sh -c 'dd if=/dev/zero of=/full bs=1M count=64; true'
check "detached" 0 'web' sampan run -d --name web --cpu 0.5 --memory 128Mi -p 8080:80 $IMAGE \
    sh -c 'mkdir /www; echo served > /www/index.html; echo starting; exec httpd -f -p 80 -h /www'
check "processor limit" 0 '^50000 100000$' sh -c 'cat /sys/fs/cgroup/sampan/*/c-main/cpu.max /sys/fs/cgroup/sampan/*/cpu.max'
check "logs" 0 '^starting$' sampan logs web
echo "@@ fact loop devices: $(cat /sys/block/loop*/loop/backing_file 2>/dev/null | tr '\n' ' ')"
check "exec" 0 '^inside$' sampan exec web echo inside
check "exec's exit code" 7 '' sampan exec web sh -c 'exit 7'
check "exec -i" 0 '^piped$' sh -c 'echo piped | sampan exec -i web cat'
check "stats" 0 'web' sampan stats --no-stream
check "copying" 0 '^served$' sh -c 'sampan cp web:/www/index.html - | tar -xO'
check "published port on 127.0.0.1" 0 '^served$' wget -qO- http://127.0.0.1:8080/
check "published port on another address" 0 '^served$' wget -qO- http://198.51.100.1:8080/
check "published port from outside" 0 '^served$' $IP netns exec outside wget -qO- http://198.51.100.1:8080/
check "the way out" 0 '^from-outside$' sampan exec web wget -qO- http://198.51.100.2/
check "an instance reaches a published port" 0 '^served$' sampan run --rm $IMAGE wget -qO- http://198.51.100.1:8080/
v6=$(sampan inspect web | grep -oE '"?ip"?: *"?[0-9a-f]*:[0-9a-f:]+' | grep -oE '[0-9a-f]*:[0-9a-f:]*:[0-9a-f]+' | head -n 1)
check "IPv6 address" 0 '^served$' wget -qO- "http://[${v6:-none}]/"
cat >/tmp/two.yaml <<'YAML'
apiVersion: v1
kind: Pod
metadata: {name: two}
spec:
  restartPolicy: Never
  volumes: [{name: shared, emptyDir: {}}, {name: memory, emptyDir: {medium: Memory}}]
  containers:
  - name: server
    image: oci:/srv/busybox:latest
    command: [sh, -c, "echo local > /shared/index.html; exec httpd -f -p 8081 -h /shared"]
    volumeMounts: [{name: shared, mountPath: /shared}]
  - name: client
    image: oci:/srv/busybox:latest
    command: [sh, -c, "until wget -qO- http://127.0.0.1:8081/; do sleep 1; done; echo done > /memory/x; sleep 1000"]
    volumeMounts: [{name: memory, mountPath: /memory}]
---
apiVersion: v1
kind: Pod
metadata: {name: hosts-users}
spec:
  hostUsers: true
  restartPolicy: Never
  containers:
  - name: main
    image: oci:/srv/busybox:latest
    command: [sh, -c, "mknod /dev/disk b 254 0; head -c 1 /dev/disk; cat /dev/null; sleep 1000"]
YAML
check "two containers" 0 'two' sampan apply -f /tmp/two.yaml
wait_for "two containers share localhost" sh -c 'sampan logs two -c client | grep -q local'
wait_for "devices of the host are refused to the host's users" sh -c 'sampan logs hosts-users 2>&1 | tee /dev/stderr | grep -q "not permitted"'
check "restarted until it works" 0 'again' sampan run -d --name again --restart always $IMAGE sh -c 'echo round; sleep 1; exit 1'
wait_for "restarts" sh -c 'sampan inspect again | grep -qE "restartCount\"?: *[1-9]"'
check "removing it" 0 'again' sampan rm -f again

kill -9 $(part daemon)
wait_for "back after kill -9 of the daemon" sampan ps
check "exec after it" 0 '^inside$' sampan exec web echo inside
check "published port after it" 0 '^served$' wget -qO- http://127.0.0.1:8080/
check "run after it" 0 '^hello$' sampan run --rm $IMAGE echo hello

kill -9 "$service" $(part daemon) $(part zygote)
start_service "back after kill -9 of every part"
check "exec after that" 0 '^inside$' sampan exec web echo inside
check "published port after that" 0 '^served$' wget -qO- http://127.0.0.1:8080/
check "run after that" 0 '^hello$' sampan run --rm $IMAGE echo hello
check "stop" 0 'web' sampan stop -t 1 web
check "remove" 0 'web' sampan rm web
check "remove others" 0 'two' sampan rm -f two hosts-users
check "nothing is left running" 0 '^$' sampan ps -aq
check "remove the image" 0 '' sampan rmi $IMAGE
kill "$service"
wait "$service"
ended=$?
[ $ended -eq 0 ] && ok "the service stops" || fail "the service stops" "exit code $ended: $(tail -n 5 $LOG)"
traces >/tmp/after
if diff /tmp/before /tmp/after >/tmp/difference; then
    ok "nothing is left"
else
    fail "nothing is left" "$(cat /tmp/difference)"
fi
grep -E 'WARN|ERROR|panick' $LOG | sed 's/^/@@ fact service: /' | tail -n 40
