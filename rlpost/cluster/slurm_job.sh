# From here on the script is the same for every run: Ray on all nodes, the driver on the first.
set -euo pipefail

say() { printf '%s rlpost: %s\n' "$(date -u +%FT%TZ)" "$*"; }
fail() { say "$*"; exit 1; }

read_setup() {
    [ -n "$setup" ] || return 0
    set +u # what it reads is others' work
    # shellcheck disable=SC1090
    source "$setup"
    set -u
}

# The address of this node in the network between nodes.
own_address() {
    local found
    if [ -n "$interface" ]; then
        found=$(ip -4 -o address show dev "$interface" | awk '{ sub("/.*", "", $4); print $4; exit }')
    else
        found=$(getent ahostsv4 "$SLURMD_NODENAME" | awk '{ print $1; exit }')
        case "$found" in 127.*) found="" ;; esac
    fi
    if [ -z "$found" ]; then
        echo "$SLURMD_NODENAME: no address in the network between nodes: set cluster.interface to" \
            "one that \`ip address\` lists" >&2
        return 1
    fi
    echo "$found"
}

# Ray on one node, until it is ended; options say whether it is the head or whom it joins.
start_ray() {
    set -euo pipefail
    read_setup
    ulimit -Sn "$(ulimit -Hn)" # Ray opens a socket for every actor and more
    local own
    own=$(own_address)
    # Ray opens its folder to all users of a node, who must not come as far as that.
    (umask 077 && mkdir -p "$private")
    exec ray start --block --node-ip-address="$own" --node-name="$SLURMD_NODENAME" \
        --num-cpus="$ray_cpus" --num-gpus="$ray_gpus" --object-store-memory="$object_store_bytes" \
        --min-worker-port=0 --max-worker-port=0 --disable-usage-stats "$@"
}
export -f read_setup own_address start_ray

# Run a step on nodes beside the batch script and other steps.
on_nodes() {
    local names=$1 count=$2
    shift 2
    srun --overlap --nodelist="$names" --nodes="$count" --ntasks="$count" --ntasks-per-node=1 \
        --cpus-per-task="$SLURM_CPUS_PER_TASK" --unbuffered "$@"
}

trap : USR1 # until there is a driver to tell
started=()
finish() {
    trap '' USR1 TERM INT
    if [ "${#started[@]}" -gt 0 ]; then
        kill "${started[@]}" 2>/dev/null || true
        wait "${started[@]}" 2>/dev/null || true
    fi
    timeout 60 srun --overlap --nodes="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 \
        rm -rf -- "$private" || true
}

export private="/tmp/rlpost-$SLURM_JOB_ID"
logs="$run_dir/slurm"
mkdir -p "$logs"
read_setup

# A token for this start of the job, in no file and no command line; steps inherit it.
RAY_AUTH_TOKEN=$(head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \n')
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]} others=("${nodes[@]:1}")
address=$(own_address)
port=$((20000 + SLURM_JOB_ID % 5000)) # beside other jobs' on a shared node
say "start ${SLURM_RESTART_COUNT:-0} of job $SLURM_JOB_ID on ${nodes[*]}; Ray's head is $head, $address:$port"

trap finish EXIT
: >"$logs/ray-$head.log"
on_nodes "$head" 1 --output="$logs/ray-$head.log" bash -c 'start_ray "$@"' ray --head \
    --port="$port" --ray-client-server-port=$((port + 5000)) --include-dashboard=false \
    --temp-dir="$private/ray" &
started+=($!)
deadline=$((SECONDS + ready_s))
until grep -q 'Ray runtime started' "$logs/ray-$head.log"; do
    kill -0 "${started[0]}" 2>/dev/null || fail "Ray did not start on $head: see $logs/ray-$head.log"
    [ "$SECONDS" -lt "$deadline" ] ||
        fail "Ray did not start on $head within cluster.ready_s=$ready_s s: see $logs/ray-$head.log"
    sleep 0.5
done
if [ "${#others[@]}" -gt 0 ]; then
    joined=$(IFS=,; echo "${others[*]}")
    on_nodes "$joined" "${#others[@]}" --output="$logs/ray-%N.log" bash -c 'start_ray "$@"' ray \
        --address="$address:$port" &
    started+=($!)
fi

# The driver waits for the other nodes and names those that do not come. Slurm tells this shell of the
# time limit to come, and the driver then writes a checkpoint and ends with 75.
"${train[@]}" ray.address="$address:$port" "ray.nodes=[$(IFS=,; echo "${nodes[*]}")]" \
    ray.nodes_timeout_s="$ready_s" &
driver=$!
told=""
pass_on() {
    told=$1
    say "SIG$told: passed on to the driver"
    kill "-$told" "$driver" 2>/dev/null || true
}
trap 'pass_on USR1' USR1
trap 'pass_on TERM' TERM INT
set +e
wait "$driver"
code=$?
while [ -n "$told" ] && [ "$code" -gt 128 ]; do # the signal has ended the wait, or the driver
    told=""
    wait "$driver"
    again=$?
    [ "$again" -ne 127 ] || break # it was the driver
    code=$again
done

if [ "$code" -eq 75 ]; then
    finish
    trap - EXIT
    if scontrol show job "$SLURM_JOB_ID" | grep -q 'Requeue=0'; then
        say "a checkpoint is written, and the job ends as it was told to: submitted again it continues"
        scancel "$SLURM_JOB_ID"
        exit "$code"
    fi
    say "a checkpoint is written: the job goes back into the queue and continues from it"
    scontrol requeue "$SLURM_JOB_ID" ||
        fail "Slurm did not requeue the job: submit the script again, it continues where it was"
    exit 0
fi
say "rlpost train ended with $code"
exit "$code"
